"""Reads an event file of io/log.c with TensorBoard's own reader and compares every point. Development only.

    python3 -m venv /tmp/venv_tb && /tmp/venv_tb/bin/pip install tensorboard pillow
    make build/test/test_log && mkdir /tmp/events
    SURGR1_EVENTS=/tmp/events build/test/test_log a_file_for_tensorboard
    /tmp/venv_tb/bin/python test/reference/check_tensorboard.py /tmp/events

Last seen to pass with TensorBoard 2.21.0. What is expected here is written in the test of that name: 100 scalars in two
sittings with a cut between them, two texts, a picture, a NaN, a step beyond 32 bits.
"""
import io
import math
import struct
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main(folder):
    # 0: keep every point, and not a sample of them
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == ["odd/nan", "odd/step", "train/loss"], tags
    assert tags["images"] == ["frame"] and tags["tensors"] == ["samples"], tags

    loss = events.Scalars("train/loss")
    assert [p.step for p in loss] == list(range(100)), [p.step for p in loss]
    for p in loss:
        assert p.value == struct.unpack("f", struct.pack("f", 1 / (p.step + 1)))[0], p
    assert all(a.wall_time <= b.wall_time for a, b in zip(loss, loss[1:]))
    assert math.isnan(events.Scalars("odd/nan")[0].value)
    (odd,) = events.Scalars("odd/step")
    assert odd.step == 1 << 40 and abs(odd.value + 1e-3) < 1e-9, odd

    first, second = events.Tensors("samples")
    table = "| step | answer |\n|---|---|\n| 1 | \u00e9t\u00e9 <b>&</b> |\n"
    assert first.step == 50 and second.step == 100
    assert first.tensor_proto.string_val[0].decode() == table, first
    assert second.tensor_proto.string_val[0] == b""
    assert first.tensor_proto.dtype == 7 and not first.tensor_proto.tensor_shape.dim  # DT_STRING, one string
    meta = events.SummaryMetadata("samples")
    assert meta.plugin_data.plugin_name == "text", meta

    (frame,) = events.Images("frame")
    assert (frame.step, frame.width, frame.height) == (50, 64, 48), frame
    picture = Image.open(io.BytesIO(frame.encoded_image_string)).convert("RGB")
    assert picture.size == (64, 48)
    for y in range(48):
        for x in range(64):
            assert picture.getpixel((x, y)) == (4 * x, 5 * y, x ^ y), (x, y)
    print("TensorBoard reads back 102 scalars, 2 texts and 1 picture as they were written")


if __name__ == "__main__":
    main(sys.argv[1])
