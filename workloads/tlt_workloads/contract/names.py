"""What both sides call things: routes, ports, variables of the environment, and folders of the store."""

from __future__ import annotations

API_PREFIX = "/tlt/v1"
STATE_ROUTE = f"{API_PREFIX}/state"  # rollout pod: GET -> RolloutState, long poll
LEASE_ROUTE = f"{API_PREFIX}/lease"  # rollout pod: POST LeaseRequest; see LeaseView for GET and DELETE
DRAFTER_ROUTE = f"{API_PREFIX}/drafter"  # rollout pod: POST DrafterLoad -> DrafterLoaded; DELETE, see DrafterLoad
SPECULATION_ROUTE = f"{API_PREFIX}/speculation"  # rollout pod: POST SpeculationSettings, GET -> SpeculationReport
CONFIG_ROUTE = f"{API_PREFIX}/config"  # rollout pod: POST RolloutConfig, idempotent
TRAINER_ROUTE = f"{API_PREFIX}/trainer"  # trainer pod: GET -> TrainerState, long poll
TEAM_KNOCK_ROUTE = f"{API_PREFIX}/team/knock"  # between trainers of a job; see trainer/team/desk.py
TEAM_STATE_ROUTE = f"{API_PREFIX}/team/state"
TEAM_LINE_ROUTE = f"{API_PREFIX}/team/line"
GATEWAY_ROUTE = f"{API_PREFIX}/gateway"  # gateway: GET -> GatewayState, long poll

ROLLOUT_PORT = 8000
TRAINER_PORT = 8001
TEAM_PORT = 8002  # of a trainer pod, for the other trainers of its job
LIGHTHOUSE_PORT = 8003
GATEWAY_PORT = 8000

# Keys of the job's Secret, and so names of files where it is mounted; `tlt_workloads.tokens` says what each is for.
TOKEN_KEY = "token"  # noqa: S105 - a name, not a secret
TOKEN_NEXT_KEY = "token-next"  # noqa: S105
TOKEN_PREVIOUS_KEY = "token-previous"  # noqa: S105
TOKEN_FILE_VARIABLE = "TLT_TOKEN_FILE"  # noqa: S105 - the name of a variable, not a secret
TOKEN_FILE_DEFAULT = "/var/run/secrets/tlt/token"  # noqa: S105 - a path, not a secret
STORE_URL_VARIABLE = "TLT_STORE_URL"
JOB_VARIABLE = "TLT_JOB"  # "<namespace>/<name>"
POD_NAME_VARIABLE = "TLT_POD_NAME"
ROLLOUT_URL_VARIABLE = "TLT_ROLLOUT_URL"
HOLDER_VARIABLE = "TLT_HOLDER"
LIGHTHOUSE_URL_VARIABLE = "TLT_LIGHTHOUSE_URL"  # set where a job can have two trainers
POD_ADDRESS_VARIABLE = "TLT_POD_ADDRESS"
TRAINER_CONFIG_VARIABLE = "TLT_TRAINER_CONFIG"  # JSON of TrainerConfig
GATEWAY_BACKEND_VARIABLE = "TLT_GATEWAY_BACKEND"  # host:port whose DNS name resolves to all rollout pods
GATEWAY_CONCURRENCY_VARIABLE = "TLT_GATEWAY_CONCURRENCY"  # requests in flight per pod, 0 = no limit

# Below the store URL each job owns one folder, `<namespace>/<job>/`.
HIDDEN_STATES_FOLDER = "hidden-states"  # <pod>/<number>.safetensors
CHECKPOINT_FOLDER = "checkpoints"
REVISION_FOLDER = "revisions"  # <revision>/{model.safetensors, config.json, manifest.json}
POLICY_FOLDER = "policy"  # written by a learner that hands its policy over by file, the newest with the highest number
POLICY_FILE_PATTERN = r"policy-(\d+)\.safetensors"
REVISION_WEIGHTS = "model.safetensors"
REVISION_SHAPE = "config.json"
REVISION_MANIFEST = "manifest.json"

JOB_PATTERN = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # two Kubernetes names
SHA256_PATTERN = "[0-9a-fA-F]{64}"
