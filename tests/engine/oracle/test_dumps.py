"""Dumps of every kind give the same judgement, and unreadable ones a line."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from numllama.engine.errors import RequestError
from numllama.engine.model.load import load_model
from numllama.engine.oracle.arrangement import unweave
from numllama.engine.oracle.dumps import open_dump
from numllama.engine.oracle.heatmap import heatmap
from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.names import hugging_face_label
from numllama.kernels import SETS
from tiny import tiny_gguf

from .engines import F32, IDS, WRONG, bf16, dump_of, products, values_of, with_tap
from .kit_models import kit_model

ROPE_BUG = next(engine for engine in WRONG if engine.name == "halves for neighbours")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_gguf(tmp_path_factory.mktemp("m") / "llama.gguf"))


@pytest.fixture(scope="module")
def right(model):
    return values_of(model, F32)


@pytest.fixture(scope="module")
def wrong(model):
    kernels, changed = ROPE_BUG.change(F32, model)
    return values_of(changed, kernels)


def save_bf16(path, values, **about):
    """Write safetensors as torch does for bfloat16, which the library's NumPy part lacks."""
    header, data, at = {"__metadata__": about}, b"", 0
    for name, x in values.items():
        part = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + len(part)]}
        data, at = data + part, at + len(part)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def written(kind, values, folder):
    path = folder / f"dump.{kind}"
    values = {name: np.ascontiguousarray(x, np.float32) for name, x in values.items()}
    if kind == "safetensors":
        save_file(values, path, {"tokens": json.dumps(IDS)})
    elif kind == "npz":
        np.savez(path, tokens=np.array(IDS), **values)
    else:
        path.mkdir()
        for name, x in {"tokens": np.array(IDS), **values}.items():
            np.save(path / f"{name}.npy", x)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "npz", "folder"])
def test_each_kind_of_file_is_read(kind, model, right, wrong, tmp_path):
    dump = open_dump(written(kind, right, tmp_path))
    assert dump.tokens == IDS and judge(model, IDS, dump).agrees
    (tmp_path / "wrong").mkdir()
    report = judge(model, IDS, open_dump(written(kind, wrong, tmp_path / "wrong")))
    assert [verdict.label for verdict in report.wrong] == ["Qcur-0", "Kcur-0", "Qcur-1", "Kcur-1"]
    assert all("RoPE paired other components" in verdict.cause for verdict in report.wrong)


def test_a_bfloat16_engine_is_read_and_its_bugs_are_found(model, tmp_path):
    def stored(kernels):
        """All results rounded to bfloat16, as torch stores them."""
        names = ("rows", "matmul", "rms_norm", "rope", "silu_mul")
        changes = {n: (lambda f: lambda *a: bf16(f(*a)))(getattr(kernels, n)) for n in names}
        return replace(kernels, **changes)

    kernels, changed = ROPE_BUG.change(products(bf16), model)
    for name, engine, expected in (("right", model, []), ("wrong", changed, ["Qcur", "Kcur"] * 2)):
        save_bf16(tmp_path / name, values_of(engine, stored(kernels)), tokens=json.dumps(IDS))
        report = judge(model, IDS, open_dump(tmp_path / name))
        assert [verdict.label.split("-")[0] for verdict in report.wrong] == expected


def eval_callback_text(values, operations=()):
    """Print values as llama-eval-callback does: three numbers at both ends of each axis, then the sum."""
    lines = []
    for name, x in values.items():
        base = name.rpartition("-")[0]
        op = {"Qcur": "ROPE", "Kcur": "ROPE"}.get(base, "MUL_MAT")
        shape = (1,) * (4 - x.ndim) + x.shape
        lines.append(
            f"cb_eval: {name} = (f32) {op}(a{{1, 1, 1, 1}}, b{{1, 1, 1, 1}}}}) = {{{', '.join(map(str, shape[::-1]))}}}"
        )
        y = x.reshape(shape)
        for i in range(shape[0]):
            for j in range(shape[1]):
                for k in range(shape[2]):
                    if 3 <= k < shape[2] - 3 or 3 <= j < shape[1] - 3:
                        lines += ["   ..., "] if k == 3 else []
                        continue
                    row = [f"{v:12.4f}" for v in y[i, j, k]]
                    lines.append("   [" + ", ".join([*row[:3], "...", *row[-3:]] if len(row) > 6 else row) + "],")
        lines.append(f"   sum = {x.sum():.6f}")
    return "\n".join(lines) + "\n"


def test_the_text_of_llama_eval_callback_is_judged_by_its_corners(model, right, wrong, tmp_path):
    for name, values in (("right", right), ("wrong", wrong)):
        shown = {key: x for key, x in values.items() if not key.startswith("kq")}
        (tmp_path / name).write_text(eval_callback_text(shown))
    assert judge(model, IDS, open_dump(tmp_path / "right")).agrees
    report = judge(model, IDS, open_dump(tmp_path / "wrong"))
    assert [verdict.label for verdict in report.wrong] == ["Qcur-0"]
    assert "RoPE paired other components" in report.wrong[0].cause


def test_a_printed_sum_shows_an_error_that_the_corners_do_not(model, right, tmp_path):
    for kernels in (F32, SETS["ggml"]):
        values = {key: x for key, x in values_of(model, kernels).items() if not key.startswith("kq")}
        (tmp_path / "right").write_text(eval_callback_text(values))
        assert judge(model, IDS, open_dump(tmp_path / "right")).agrees
    middle = np.zeros(right["ffn_swiglu-0"].shape, np.float32)
    middle[8:10, 20:60] = 0.5  # between the corners
    kernels, changed = with_tap(ffn_swiglu=lambda x, seen: x + middle)(F32, model)
    values = {key: x for key, x in values_of(changed, kernels).items() if not key.startswith("kq")}
    (tmp_path / "wrong").write_text(eval_callback_text(values))
    assert [v.label for v in judge(model, IDS, open_dump(tmp_path / "wrong")).wrong] == ["ffn_swiglu-0"]


def test_printed_attention_that_is_rotated_is_not_compared(model, right, tmp_path):
    """Not even where the text ends with it: the program may end before it has written all."""
    names = [name for name in right if not name.startswith("kq") or name.startswith("kqv_out")]
    values = {name: right[name] for name in names[: names.index("kqv_out-1") + 1]}
    values |= {name: values[name][..., ::-1] for name in ("kqv_out-0", "kqv_out-1")}
    text = eval_callback_text(values)
    path = tmp_path / "dump.txt"
    path.write_text(text)
    assert [v.label for v in judge(model, IDS, open_dump(path)).wrong][-1] == "kqv_out-1"
    path.write_text(
        text + "cb_eval: node_1 = (f32) MUL_MAT(attn_inp_v_rot{8, 8, 1, 1}, x{8, 8, 1, 1}}) = {8, 8, 1, 1}\n"
    )
    report = judge(model, IDS, open_dump(path))
    assert report.agrees and "rotated" in report.not_compared["kqv_out-0"]


def test_other_orders_of_axes_padding_and_last_rows_are_recognized(model, right):
    values = dict(right)
    values["Qcur-0"] = right["Qcur-0"].transpose(1, 0, 2)
    values["Vcur-0"] = right["Vcur-0"][None]
    values["ffn_up-0"] = right["ffn_up-0"].T
    values["kq-0"] = np.pad(right["kq-0"], ((0, 0), (0, 0), (0, 12)))
    for name in ("attn_out-1", "ffn_inp-1", "l_out-1"):
        values[name] = right[name][-1:]
    report = judge(model, IDS, dump_of(values))
    assert report.agrees and report.not_compared == {}
    notes = {verdict.label: verdict.note for verdict in report.verdicts}
    assert notes["l_out-1"] == "last 1 row only" and notes["kq-0"] == "padding cut off"
    assert notes["Qcur-0"].startswith("axes in the order") and notes["ffn_up-0"].startswith("axes in the order")


def test_the_order_of_rows_in_hugging_faces_files_is_not_wrong(model, right):
    values = {name: unweave(x) if name.startswith(("Qcur", "Kcur")) else x for name, x in right.items()}
    report = judge(model, IDS, dump_of(values))
    assert report.agrees and any("another order" in note for note in report.notes)


def test_values_before_rope_under_the_same_name_get_a_name_of_their_own(model, right):
    kernels = replace(F32, rope=lambda x, positions, rule: x)
    before = values_of(model, kernels)
    values = {**right, **{name: x for name, x in before.items() if name in ("Qcur-0", "Kcur-0")}}
    report = judge(model, IDS, dump_of(values))
    assert report.agrees and any("before RoPE" in note for note in report.notes)
    assert "Qcur_pre_rope-0" in [verdict.label for verdict in report.verdicts]


def test_names_of_transformers_are_translated(model, right, tmp_path):
    n_layer = model.hparams.n_layer
    values = {f"hidden_states.{i + 1}": right[f"l_out-{i}"] for i in range(n_layer - 1)}
    values["hidden_states.0"] = right["embd"]
    values["model.layers.0.mlp.gate_proj"] = right["ffn_gate-0"]
    values["lm_head"] = right["result_output"]
    values["rotary_emb"] = np.zeros(3)
    values[f"hidden_states.{n_layer}"] = np.zeros((len(IDS), model.hparams.n_embd), np.float32)
    values[f"hidden_states.{n_layer}"][-1] = right["result_norm"][0]
    dump = open_dump(written("npz", values, tmp_path), names="hf")
    assert "result_norm" in dump.entries and "rotary_emb" in dump.skipped
    del dump.entries["result_norm"]
    assert judge(model, IDS, dump).agrees
    assert hugging_face_label("model.layers.11.self_attn.q_proj") == "Qcur_projected-11"


def test_own_names_are_translated_by_a_map(model, wrong, tmp_path):
    own = {f"layers.{name.partition('-')[2]}.q": x for name, x in wrong.items() if name.startswith("Qcur")}
    (tmp_path / "map.json").write_text('{"layers.{il}.q": "Qcur-{il}"}')
    dump = open_dump(written("npz", own, tmp_path), map_file=tmp_path / "map.json")
    assert [verdict.label for verdict in judge(model, IDS, dump).wrong] == ["Qcur-0", "Qcur-1"]


def test_decode_steps_are_rows_after_the_prompt(model, right):
    report = judge(model, IDS, dump_of(right), n_decode=5)
    assert report.agrees and report.n_prompt == len(IDS) - 5
    late = dict(right)
    late["kqv_out-0"] = right["kqv_out-0"].copy()
    late["kqv_out-0"][-5:] *= 1.5
    report = judge(model, IDS, dump_of(late), n_decode=5)
    assert {v.label: v.rows for v in report.wrong} == dict.fromkeys(("kqv_out-0", "attn_out-0"), tuple(range(15, 20)))


def bad_dumps(folder, right):
    path = written("safetensors", right, folder)
    whole = path.read_bytes()
    files = {
        "cut": (whole[: len(whole) // 2], "truncated"),
        "cut header": (whole[:20], "truncated"),
        "text": (b"hello\n", "no values as llama-eval-callback"),
        "zeros": (bytes(64), "expected safetensors"),
        "empty": (b"", "expected safetensors"),
        "zip": (b"PK\x03\x04" + bytes(50), "truncated, or not .npz"),
        "10 GiB": (struct.pack("<Q", 10 << 30) + b"{" + bytes(100), "truncated"),
        "json": (struct.pack("<Q", 4) + b"{]}}" + bytes(100), "not a JSON object"),
    }
    for name, (data, message) in files.items():
        (folder / name).write_bytes(data)
        yield folder / name, message


def test_a_bad_file_gives_one_line(right, tmp_path):
    for path, message in bad_dumps(tmp_path, right):
        with pytest.raises(RequestError) as found:
            open_dump(path)
        assert message in str(found.value) and "\n" not in str(found.value), path


def test_a_huge_array_is_not_read(model, right, tmp_path):
    np.lib.format.open_memmap(tmp_path / "Qcur-0.npy", "w+", np.float32, (1 << 20, 2560)).flush()  # sparse: 10 GiB
    np.save(tmp_path / "l_out-0.npy", right["l_out-0"])
    report = judge(model, IDS, open_dump(tmp_path))
    assert report.agrees and "1048576x2560" in report.not_compared["Qcur-0"]


def test_numbers_that_are_not_finite_name_the_first_value(model, right):
    values = {**right, "l_out-1": right["l_out-1"] * np.nan, "Vcur-1": right["Vcur-1"] * np.inf}
    with pytest.raises(RequestError, match="Vcur-1 has 640 numbers that are not finite"):
        judge(model, IDS, dump_of(values))


def test_another_models_dump_and_other_tokens_cannot_be_compared(model, right, tmp_path):
    other = load_model(tiny_gguf(tmp_path / "other.gguf", seed=5))
    with pytest.raises(RequestError, match="nothing in common"):
        judge(other, IDS, dump_of(right))
    with pytest.raises(RequestError, match="no values in common"):
        judge(
            load_model(tiny_gguf(tmp_path / "wide.gguf", n_embd=128, n_ff=160)),
            IDS,
            dump_of({name: x for name, x in right.items() if not name.startswith(("kq", "result_output"))}),
        )
    with pytest.raises(RequestError, match=r"lacks the first token, 1 \(BOS\)"):
        judge(model, IDS, dump_of(right, IDS[1:]))


def test_the_heat_map_escapes_names(model, right):
    report = judge(model, IDS, dump_of({**right, "<script>alert(1)</script>": np.zeros(3)}))
    page = heatmap(report, "<b>dump</b>")
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>dump" not in page
    assert 'id="Qcur-1"' in page and 'href="#Qcur-1"' in page


def test_numbers_that_are_not_finite_since_float16_overflows_are_explained(tmp_path):
    model = kit_model(tmp_path, "llama-large")
    values = values_of(model, F32)
    values["kqv_out-0"] = values["kqv_out-0"].copy()
    values["kqv_out-0"][3, 5] = np.inf  # as an f16 cache of these values gives
    with pytest.raises(
        RequestError, match=r"kqv_out-0 has 1 number that is .*; Vcur-0 is up to .*float16 ends at 65504"
    ):
        judge(model, IDS, dump_of(values))


def test_where_all_is_wrong_the_arithmetic_is_not_known(model, right):
    values = {name: x * 3 for name, x in right.items() if name.startswith("ffn_gate")}
    assert judge(model, IDS, dump_of(values)).profile == {}
