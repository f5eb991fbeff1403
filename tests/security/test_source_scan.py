"""No module reads a file in a way that lets the file run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
UNPICKLERS = {"pickle", "cloudpickle", "_pickle", "dill", "joblib", "marshal", "shelve"}
BY_NAME = {"eval", "exec", "extractall", "Unpickler", "unsafe_load", "read_pickle", "os.system"}
RUNS_CODE = {
    "runpy.run_path": "downstream/spaces.py"
}  # a tune space is a program, named by its user


def unsafe_calls(source: str) -> Iterator[str]:
    """The calls in a module that may run what they read, or that a shell would interpret."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if problem := problem_of(name, {k.arg: k.value for k in node.keywords}):
                yield f"line {node.lineno}: {name}: {problem}"


def problem_of(name: str, keywords: dict[str | None, ast.expr]) -> str:
    first, _, last = name.rpartition(".")
    module = first.split(".")[0]

    def is_set(keyword: str, wanted: bool) -> bool:
        value = keywords.get(keyword)
        return isinstance(value, ast.Constant) and value.value is wanted

    if name == "torch.load" and not is_set("weights_only", True):
        return "without weights_only=True"
    if module in UNPICKLERS and last in ("load", "loads", "open"):
        return "runs what it reads"
    if name in BY_NAME or (first and last in BY_NAME - {"eval", "exec"}):
        return "is not allowed"
    if last in ("load", "load_all") and module == "yaml":
        return "use safe_load"
    if "allow_pickle" in keywords and not is_set("allow_pickle", False):
        return "with allow_pickle"
    if "trust_remote_code" in keywords and not is_set("trust_remote_code", False):
        return "with trust_remote_code"
    if "shell" in keywords and not is_set("shell", False):
        return "through a shell"
    return ""


def test_nothing_is_read_in_a_way_that_runs_code() -> None:
    assert len(SOURCES) > 200
    found = {
        str(path.relative_to(ROOT)): calls
        for path in SOURCES
        if (calls := list(unsafe_calls(path.read_text())))
    }
    assert found == {}


@pytest.mark.parametrize("call", RUNS_CODE)
def test_what_runs_a_users_file_is_where_it_is_expected(call: str) -> None:
    """`--space file.py` is a program; SECURITY.md says so. No other module does the like."""
    using = [path for path in SOURCES if f"{call}(" in path.read_text()]
    assert [str(path.relative_to(ROOT / "platform" / "mstar")) for path in using] == [
        RUNS_CODE[call]
    ]


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "cloudpickle.loads(data)",
        "pickle.Unpickler(file).load()",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "subprocess.run(line, shell=True)",
        "zipfile.ZipFile(path).extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "eval(text)",
    ],
)
def test_the_scan_finds_what_it_is_for(line: str) -> None:
    assert list(unsafe_calls(line))


@pytest.mark.parametrize("line", ["model.eval()", "np.load(path)", "yaml.safe_load(text)"])
def test_the_scan_leaves_the_rest_alone(line: str) -> None:
    assert not list(unsafe_calls(line))
