"""A drafter as files: derived from the target, reproducible, and refused when it is not exactly a drafter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_target import TINY_CONFIG, write_tiny_target
from tlt_workloads.drafter import (
    DrafterError,
    TargetFiles,
    auxiliary_layers,
    check_drafter_tensors,
    draft_vocabulary,
    drafter_config,
    drafter_tensors,
    read_drafter_config,
    write_initial_drafter,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_tiny_target(tmp_path / "target")


def test_the_initial_drafter_has_exactly_the_allowed_tensors(target: Path, tmp_path: Path) -> None:
    config = write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    tensors = load_file(tmp_path / "drafter/model.safetensors")
    check_drafter_tensors(tensors, config)
    assert tensors.keys() == drafter_tensors(config).keys()
    assert not any("embed_tokens" in name for name in tensors)


def test_the_initial_drafter_starts_from_the_last_layer(target: Path, tmp_path: Path) -> None:
    write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    source = load_file(target / "model.safetensors")
    tensors = load_file(tmp_path / "drafter/model.safetensors")
    hidden_half = tensors["layers.0.self_attn.q_proj.weight"][:, 32:]
    assert torch.equal(hidden_half, source["model.layers.3.self_attn.q_proj.weight"])
    assert torch.equal(tensors["layers.0.mlp.up_proj.weight"], source["model.layers.3.mlp.up_proj.weight"])
    assert torch.equal(tensors["lm_head.weight"], source["lm_head.weight"][tensors["t2d"]])
    features = torch.randn(5, 96)
    assert torch.equal(features @ tensors["fc.weight"].float().T, features[:, 64:])


def test_present_weights_come_before_those_of_the_folder(target: Path, tmp_path: Path) -> None:
    newer = tmp_path / "policy-3.safetensors"
    head = -TargetFiles(target).head()
    save_file({"lm_head.weight": head}, newer)
    present = TargetFiles(target, newer=newer)
    assert torch.equal(present.head(), head)
    assert torch.equal(present.embedding(), TargetFiles(target).embedding()), "the file lacks it"
    newer.unlink()  # by the learner, which keeps a few
    assert torch.equal(present.head(), -head)


def test_the_same_arguments_write_the_same_bytes(target: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_initial_drafter(target, tmp_path / name, draft_vocab_size=24, seed=5)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_config_survives_the_disk(target: Path, tmp_path: Path) -> None:
    written = write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    assert read_drafter_config(tmp_path / "drafter") == written


def test_frequent_tokens_are_drafted_and_the_lowest_fill_up() -> None:
    vocabulary = draft_vocabulary({50: 3, 7: 9}, draft_vocab_size=4, vocab_size=60)
    assert (torch.arange(4) + vocabulary.d2t).tolist() == [0, 1, 7, 50]
    assert vocabulary.t2d.nonzero().flatten().tolist() == [0, 1, 7, 50]


def test_a_full_vocabulary_needs_no_mapping_and_shares_the_head(target: Path, tmp_path: Path) -> None:
    write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=96)
    assert load_file(tmp_path / "drafter/model.safetensors").keys().isdisjoint({"d2t", "t2d", "lm_head.weight"})


@pytest.mark.parametrize("layers", range(4, 80, 5))
def test_auxiliary_layers_are_three_and_distinct(layers: int) -> None:
    chosen = auxiliary_layers(layers)
    assert len(set(chosen)) == 3
    assert all(0 < layer < layers for layer in chosen)
    assert chosen == tuple(sorted(chosen))
    if layers > 7:
        assert chosen == (2, layers // 2, layers - 3)


def test_a_missing_target_names_the_field_and_the_path(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match=r"spec\.target\.model: no config\.json in .*/absent"):
        write_initial_drafter(tmp_path / "absent", tmp_path / "drafter", draft_vocab_size=8)


def test_broken_target_weights_name_the_file(target: Path, tmp_path: Path) -> None:
    (target / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DrafterError, match=r"spec\.target\.model: .*model\.safetensors cannot be read"):
        write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=8)


def test_a_target_config_without_a_field_names_it() -> None:
    config = {key: value for key, value in TINY_CONFIG.items() if key != "intermediate_size"}
    with pytest.raises(DrafterError, match="'intermediate_size' is missing"):
        drafter_config(config, draft_vocab_size=8)


def test_a_draft_vocabulary_larger_than_the_targets_is_refused() -> None:
    with pytest.raises(DrafterError, match=r"spec\.drafter\.draftVocabSize: 97"):
        drafter_config(TINY_CONFIG, draft_vocab_size=97)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({"embed_tokens.weight": torch.zeros(96, 32)}), "embed_tokens.weight: not a"),
        (lambda tensors: tensors.pop("fc.weight"), "fc.weight: missing"),
        (lambda tensors: tensors.update({"norm.weight": torch.ones(32)}), "norm.weight: torch.float32"),
        (lambda tensors: tensors["fc.weight"].__setitem__((0, 0), torch.nan), "fc.weight: holds values that are not"),
        (lambda tensors: tensors["d2t"].__setitem__(0, 5), "d2t: does not map"),
    ],
)
def test_anything_but_a_drafter_is_refused(target: Path, tmp_path: Path, change: object, message: str) -> None:
    config = write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    tensors = load_file(tmp_path / "drafter/model.safetensors")
    change(tensors)  # type: ignore[operator]
    with pytest.raises(DrafterError, match=message):
        check_drafter_tensors(tensors, config)


def test_a_drafter_of_another_vocabulary_is_refused_with_the_fields_that_must_agree(
    target: Path, tmp_path: Path
) -> None:
    config = write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    write_initial_drafter(target, tmp_path / "other", draft_vocab_size=32)
    with pytest.raises(DrafterError, match=r"spec\.drafter\.draftVocabSize and --draft-vocab-size"):
        check_drafter_tensors(load_file(tmp_path / "other/model.safetensors"), config)


def test_a_sharded_target_is_read_through_its_index(target: Path, tmp_path: Path) -> None:
    (target / "model.safetensors").rename(target / "model-00001-of-00001.safetensors")
    names = load_file(target / "model-00001-of-00001.safetensors").keys()
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    write_initial_drafter(target, tmp_path / "drafter", draft_vocab_size=24)
    assert (tmp_path / "drafter/model.safetensors").is_file()
