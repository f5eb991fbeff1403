"""What `mstar submit` takes in front of the job's name; what comes after it is the job's own."""

from dataclasses import dataclass

from mstar.errors import ConfigError
from mstar.training.credentials import is_secret_name

DRIVERS = ("auto", "head", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitConfig:
    """Where a job goes and what goes with it; all of it stands before the job's name.

    As in `mstar submit --no-wait embed tcga_uni --slides s3://… --out s3://…`.
    """

    address: str = ""
    """The cluster's dashboard, http://host:8265; empty: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.
    The token is never a flag: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."""
    no_wait: bool = False
    """Return once the job is taken, instead of following its log to its end."""
    ship_code: bool = False
    """Send this package with the job, in place of the one installed on the cluster. Without it the
    cluster must have exactly this version and commit installed."""
    python: str = "python"
    """Interpreter on the cluster's nodes, as their PATH finds it."""
    driver: str = "auto"
    """Where the job's own process runs. head: the head node; worker: any other node; auto: another
    node that is no spot node, if there is one now, else the head."""
    driver_cpus: float = 0.0
    """CPUs set aside for the driver; it needs little, and 0 takes none from the workers."""
    driver_labels: tuple[str, ...] = ()
    """Labels of the driver's node, KEY=VALUE, instead of what --driver says."""
    credentials: tuple[str, ...] = ()
    """Names of environment variables that every node must have, as AWS_SECRET_ACCESS_KEY. Only the
    names are sent; a node that lacks one is an error at the start."""
    env: tuple[str, ...] = ()
    """Names of further variables to send with their values; secrets are refused. Addresses
    (AWS_ENDPOINT_URL, AWS_REGION, MLFLOW_TRACKING_URI, …) are sent without being named."""
    submission_id: str = ""
    """Name of the submission; empty: made from the job, the time and four random digits."""
    stop_wait_s: int = 60
    """Seconds that `ray job stop` gives the job to end by itself; Ray's own default is 3."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.driver not in DRIVERS:
            raise ConfigError(f"--driver {self.driver}: expected one of {', '.join(DRIVERS)}")
        for label in self.driver_labels:
            if "=" not in label:
                raise ConfigError(f"--driver-labels {label}: expected KEY=VALUE")
        for name in self.env:
            if is_secret_name(name):
                raise ConfigError(
                    f"--env {name}: it looks like a secret, and Ray shows what it is sent. Give it "
                    f"to the cluster's nodes and name it: --credentials {name}"
                )
        for name in (*self.env, *self.credentials):
            if not name.isidentifier():
                raise ConfigError(f"{name!r}: expected the name of a variable, never its value")
