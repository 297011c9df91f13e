"""An EAGLE-3 drafter as files: `config.json` and `model.safetensors`, in the form that vLLM loads with method `eagle3`.

EAGLE-3 (arXiv 2503.01840): `fc` mixes the hidden states of a few target layers, one decoder layer reads that beside
the embedding of the newest token, and the target's own head, cut down to the draft vocabulary, scores the next one.
`d2t[i]` is the distance from draft id `i` to its target id; `t2d[j]` tells whether target id `j` is drafted at all.

The target's embedding is not among a drafter's tensors, ever: vLLM lets the drafter share the target's module when
both are equal at start, and loading `embed_tokens` later would then overwrite the policy.
"""

from tlt_workloads.drafter.initial import DraftVocabulary as DraftVocabulary
from tlt_workloads.drafter.initial import draft_vocabulary as draft_vocabulary
from tlt_workloads.drafter.initial import initial_tensors as initial_tensors
from tlt_workloads.drafter.initial import write_initial_drafter as write_initial_drafter
from tlt_workloads.drafter.shape import CONFIG_FILE as CONFIG_FILE
from tlt_workloads.drafter.shape import WEIGHTS_FILE as WEIGHTS_FILE
from tlt_workloads.drafter.shape import DrafterConfig as DrafterConfig
from tlt_workloads.drafter.shape import DrafterError as DrafterError
from tlt_workloads.drafter.shape import auxiliary_layers as auxiliary_layers
from tlt_workloads.drafter.shape import drafter_config as drafter_config
from tlt_workloads.drafter.shape import parse_drafter_config as parse_drafter_config
from tlt_workloads.drafter.shape import read_drafter_config as read_drafter_config
from tlt_workloads.drafter.target import INDEX_FILE as INDEX_FILE
from tlt_workloads.drafter.target import TargetFiles as TargetFiles
from tlt_workloads.drafter.tensors import TensorError as TensorError
from tlt_workloads.drafter.tensors import TensorSpec as TensorSpec
from tlt_workloads.drafter.tensors import check_drafter_tensors as check_drafter_tensors
from tlt_workloads.drafter.tensors import check_same_target as check_same_target
from tlt_workloads.drafter.tensors import drafter_bytes as drafter_bytes
from tlt_workloads.drafter.tensors import drafter_tensors as drafter_tensors
