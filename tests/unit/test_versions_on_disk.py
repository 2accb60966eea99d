"""A version takes little more than its tensors' bytes, and far less than a checkpoint."""

from pathlib import Path

import torch

from benchmarks.versions_on_disk import in_common, measured, report
from factedit.models import load_model
from factedit.toy import write_toy_model


def test_a_versions_bytes_are_its_tensors_and_the_root_is_many_times_as_large(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "model", steps=1)
    lm = load_model(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    lm.model.save_pretrained(tmp_path / "model")
    (name,) = lm.block_tensors(2, "mlp_out")
    bits = lm.tensors[name].data.view(torch.int16)
    overlay = {
        name: (bits + torch.arange(bits.numel()).view_as(bits) % 50).to(torch.int16).view(torch.bfloat16)
    }
    (tmp_path / "scratch").mkdir()
    size = measured("one", overlay, tmp_path / "model", tmp_path / "scratch")
    assert size.tensors == 64 * 128 * 2
    assert 0 < size.overhead < 0.01
    assert size.packed < 0.6 * size.plain
    assert size.full > 10 * size.plain
    assert min(size.load_plain, size.load_packed, size.publish_packed) > 0
    assert "16,384" in report([size])


def test_what_is_published_twice_takes_its_room_once(tmp_path: Path) -> None:
    first, other = torch.ones(100), torch.zeros(100)
    once, twice, distinct = in_common([{"a": first}, {"a": first.clone(), "b": other}], tmp_path)
    assert once == twice > 3 * 400
    assert distinct == 2 * 400
