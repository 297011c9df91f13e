"""What operator and workloads must agree on: names, routes and payloads.  Standard library only.

Every route below `/tlt/v1` asks for `Authorization: Bearer <token>` with the per-job token and speaks JSON.
Long polls take `?seq=N&wait=S`: the answer comes at once when the server's sequence number differs from N, else at
the next change, and after S seconds at the latest.  `boot` changes when the process restarts; a caller that sees a new
`boot` starts again from `seq=0`.  Errors are `{"error": {"reason": CamelCase, "message": sentence}}`.

Durations are seconds (float), sizes are bytes, ages count backwards from the moment of the answer, so that no two
clocks are ever compared.

The modules are for those who change one of its subjects; everybody else imports from here.
"""

from tlt_workloads.codec import ContractError as ContractError
from tlt_workloads.codec import decode as decode
from tlt_workloads.codec import encode as encode
from tlt_workloads.contract.drafters import DrafterLoad as DrafterLoad
from tlt_workloads.contract.drafters import DrafterLoaded as DrafterLoaded
from tlt_workloads.contract.drafters import DrafterRefusal as DrafterRefusal
from tlt_workloads.contract.drafters import Evaluation as Evaluation
from tlt_workloads.contract.drafters import RevisionManifest as RevisionManifest
from tlt_workloads.contract.gateway import GatewayBackend as GatewayBackend
from tlt_workloads.contract.gateway import GatewayState as GatewayState
from tlt_workloads.contract.leases import EndedLease as EndedLease
from tlt_workloads.contract.leases import LeasePhase as LeasePhase
from tlt_workloads.contract.leases import LeaseRequest as LeaseRequest
from tlt_workloads.contract.leases import LeaseView as LeaseView
from tlt_workloads.contract.leases import MemoryMode as MemoryMode
from tlt_workloads.contract.leases import RevokeReason as RevokeReason
from tlt_workloads.contract.names import API_PREFIX as API_PREFIX
from tlt_workloads.contract.names import CHECKPOINT_FOLDER as CHECKPOINT_FOLDER
from tlt_workloads.contract.names import CONFIG_ROUTE as CONFIG_ROUTE
from tlt_workloads.contract.names import DRAFTER_ROUTE as DRAFTER_ROUTE
from tlt_workloads.contract.names import GATEWAY_BACKEND_VARIABLE as GATEWAY_BACKEND_VARIABLE
from tlt_workloads.contract.names import GATEWAY_CONCURRENCY_VARIABLE as GATEWAY_CONCURRENCY_VARIABLE
from tlt_workloads.contract.names import GATEWAY_PORT as GATEWAY_PORT
from tlt_workloads.contract.names import GATEWAY_ROUTE as GATEWAY_ROUTE
from tlt_workloads.contract.names import HIDDEN_STATES_FOLDER as HIDDEN_STATES_FOLDER
from tlt_workloads.contract.names import HOLDER_VARIABLE as HOLDER_VARIABLE
from tlt_workloads.contract.names import JOB_PATTERN as JOB_PATTERN
from tlt_workloads.contract.names import JOB_VARIABLE as JOB_VARIABLE
from tlt_workloads.contract.names import LEASE_ROUTE as LEASE_ROUTE
from tlt_workloads.contract.names import LIGHTHOUSE_PORT as LIGHTHOUSE_PORT
from tlt_workloads.contract.names import LIGHTHOUSE_URL_VARIABLE as LIGHTHOUSE_URL_VARIABLE
from tlt_workloads.contract.names import POD_ADDRESS_VARIABLE as POD_ADDRESS_VARIABLE
from tlt_workloads.contract.names import POD_NAME_VARIABLE as POD_NAME_VARIABLE
from tlt_workloads.contract.names import POLICY_FILE_PATTERN as POLICY_FILE_PATTERN
from tlt_workloads.contract.names import POLICY_FOLDER as POLICY_FOLDER
from tlt_workloads.contract.names import REVISION_FOLDER as REVISION_FOLDER
from tlt_workloads.contract.names import REVISION_MANIFEST as REVISION_MANIFEST
from tlt_workloads.contract.names import REVISION_SHAPE as REVISION_SHAPE
from tlt_workloads.contract.names import REVISION_WEIGHTS as REVISION_WEIGHTS
from tlt_workloads.contract.names import ROLLOUT_PORT as ROLLOUT_PORT
from tlt_workloads.contract.names import ROLLOUT_URL_VARIABLE as ROLLOUT_URL_VARIABLE
from tlt_workloads.contract.names import SHA256_PATTERN as SHA256_PATTERN
from tlt_workloads.contract.names import SPECULATION_ROUTE as SPECULATION_ROUTE
from tlt_workloads.contract.names import STATE_ROUTE as STATE_ROUTE
from tlt_workloads.contract.names import STORE_URL_VARIABLE as STORE_URL_VARIABLE
from tlt_workloads.contract.names import TEAM_KNOCK_ROUTE as TEAM_KNOCK_ROUTE
from tlt_workloads.contract.names import TEAM_LINE_ROUTE as TEAM_LINE_ROUTE
from tlt_workloads.contract.names import TEAM_PORT as TEAM_PORT
from tlt_workloads.contract.names import TEAM_STATE_ROUTE as TEAM_STATE_ROUTE
from tlt_workloads.contract.names import TOKEN_FILE_DEFAULT as TOKEN_FILE_DEFAULT
from tlt_workloads.contract.names import TOKEN_FILE_VARIABLE as TOKEN_FILE_VARIABLE
from tlt_workloads.contract.names import TOKEN_KEY as TOKEN_KEY
from tlt_workloads.contract.names import TOKEN_NEXT_KEY as TOKEN_NEXT_KEY
from tlt_workloads.contract.names import TOKEN_PREVIOUS_KEY as TOKEN_PREVIOUS_KEY
from tlt_workloads.contract.names import TRAINER_CONFIG_VARIABLE as TRAINER_CONFIG_VARIABLE
from tlt_workloads.contract.names import TRAINER_PORT as TRAINER_PORT
from tlt_workloads.contract.names import TRAINER_ROUTE as TRAINER_ROUTE
from tlt_workloads.contract.recording import CaptureCounters as CaptureCounters
from tlt_workloads.contract.recording import CaptureDrops as CaptureDrops
from tlt_workloads.contract.recording import CaptureSettings as CaptureSettings
from tlt_workloads.contract.recording import ElementType as ElementType
from tlt_workloads.contract.rollout import RolloutConfig as RolloutConfig
from tlt_workloads.contract.rollout import RolloutState as RolloutState
from tlt_workloads.contract.rollout import config_digest as config_digest
from tlt_workloads.contract.speculation import AcceptanceCounters as AcceptanceCounters
from tlt_workloads.contract.speculation import ArmReport as ArmReport
from tlt_workloads.contract.speculation import BucketReport as BucketReport
from tlt_workloads.contract.speculation import Drafting as Drafting
from tlt_workloads.contract.speculation import DraftSource as DraftSource
from tlt_workloads.contract.speculation import LengthCounters as LengthCounters
from tlt_workloads.contract.speculation import SpeculationMode as SpeculationMode
from tlt_workloads.contract.speculation import SpeculationReport as SpeculationReport
from tlt_workloads.contract.speculation import SpeculationSettings as SpeculationSettings
from tlt_workloads.contract.trainer import TrainerConfig as TrainerConfig
from tlt_workloads.contract.trainer import TrainerPhase as TrainerPhase
from tlt_workloads.contract.trainer import TrainerState as TrainerState
from tlt_workloads.contract.trainer import WindowReport as WindowReport
