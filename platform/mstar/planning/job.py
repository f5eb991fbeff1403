"""`mstar plan`: what a run over a cohort will take, before it is started."""

import json

from mstar.planning.config import PlanConfig, read_inputs
from mstar.planning.curve import bend, curve_table, draw_curve, scaling_curve
from mstar.planning.plan import make_plan, stage_plan
from mstar.planning.report import plan_json, plan_screen
from mstar.planning.simulate import simulate
from mstar.training.exit_codes import ExitCode


def run(config: PlanConfig) -> int:
    """Print the plan; returns the exit code."""
    inputs = read_inputs(config)
    if config.curve:
        return _curve(config)
    plan = make_plan(inputs.job, inputs.stages)
    simulated = None
    if config.simulate:
        simulated = simulate(inputs.job, seed=config.seed)
        if not plan or plan[0].name != "embed":
            plan = [stage_plan(inputs.job, "embed"), *plan]
    if config.json:
        print(json.dumps(plan_json(inputs, plan, simulated), indent=1, ensure_ascii=False))
    else:
        print(plan_screen(inputs, plan, simulated))
    return ExitCode.COMPLETE


def _curve(config: PlanConfig) -> int:
    job = read_inputs(config).job
    points = scaling_curve(job, seed=config.seed)
    draw_curve(config.curve, {"embed": points}, title=f"embed, {job.work.num_slides:,} slides")
    print(curve_table(points))
    bends = bend(points)
    print(f"it bends at {bends} GPUs" if bends else "it does not bend up to 512 GPUs")
    print(f"simulated, nothing was run; drawn into {config.curve}")
    return ExitCode.COMPLETE
