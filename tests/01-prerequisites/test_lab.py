"""The laboratory bench: files, results, markers, figures, parsers, intervals, timing."""

from __future__ import annotations

import io
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lab
import lab_results

# --- devices, seeds, progress ----------------------------------------------------------------


def test_pick_device_auto_takes_an_accelerator_where_there_is_one():
    device = lab.pick_device()
    if torch.cuda.is_available():
        assert device.type == "cuda"
    elif torch.backends.mps.is_available():
        assert device.type == "mps"
    else:
        assert device == torch.device("cpu")
    assert lab.pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:-1", "xpu"])
def test_pick_device_names_what_it_takes(name):
    with pytest.raises(ValueError, match="auto, cpu, cuda"):
        lab.pick_device(name)


def test_a_cpu_only_script_takes_no_other_device(capsys, tmp_path):
    parser = lab.script_parser("x", default_out=tmp_path, cpu_only=True)
    for taken in ([], ["--device", "auto"], ["--device", "cpu"]):
        assert parser.parse_args(taken).device == torch.device("cpu")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--device", "cuda"])
    assert ended.value.code == 2
    assert "run on the CPU alone; got 'cuda'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_pick_device_says_what_is_there_when_one_is_absent():
    with pytest.raises(ValueError, match="'cuda:0' is absent: this machine has cpu"):
        lab.pick_device("cuda:0")


def test_seed_everything_repeats_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    lab.seed_everything(7)
    first = draw()
    lab.seed_everything(8)
    other = draw()
    lab.seed_everything(7)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_progress_is_silent_in_a_log_when_quick(capfd):
    assert list(lab.progress([3, 1, 2], desc="quick")) == [3, 1, 2]
    with lab.progress(desc="by hand", total=4) as bar:
        bar.update(4)
        assert bar.n == 4
    assert capfd.readouterr() == ("", "")


def test_progress_writes_whole_lines_to_a_log(capsys):
    bar = lab.progress(desc="slow", total=2)
    bar.delay = 0.0
    bar.mininterval = 0.0
    bar.start_t -= 10
    bar.update(1)
    bar.update(1)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("slow:") for line in lines)
    assert "2/2" in lines[-1]


# --- files -----------------------------------------------------------------------------------


def test_atomic_write_keeps_bytes_and_newlines_and_leaves_nothing_behind(tmp_path):
    lab.atomic_write(tmp_path / "a.txt", "é\r\nb\n")
    lab.atomic_write(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\nb\n"
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.txt"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    lab.atomic_write(target, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lab_results.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        lab.atomic_write(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_is_whole_whenever_it_is_killed(tmp_path):
    """A child rewrites one file with one letter, then another, without end, until killed."""
    target = tmp_path / "a.txt"
    code = (
        "import sys, itertools; from lab_results import atomic_write\n"
        "for letter in itertools.cycle('ab'): atomic_write(sys.argv[1], letter * 2_000_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)])
    try:
        deadline = time.monotonic() + 60
        while not target.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        sizes = {len(target.read_bytes()) for _ in range(50)}
    finally:
        child.kill()
        child.wait()
    assert sizes == {2_000_000}
    assert len(set(target.read_text())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_atomic_write_obeys_the_umask_and_writes_through_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    old = os.umask(0o027)
    try:
        lab.atomic_write(tmp_path / "link.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").stat().st_mode & 0o777 == 0o640


# --- figures ---------------------------------------------------------------------------------


def draw_line(points):
    figure, axes = lab.new_figure(width=3, height=2)
    axes.plot(points)
    axes.set_title("a line")
    return figure


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf"])
def test_equal_figures_are_equal_files(tmp_path, name):
    lab.save_figure(draw_line([1, 2, 4]), tmp_path / "one" / name)
    lab.save_figure(draw_line([1, 2, 4]), tmp_path / "two" / name)
    lab.save_figure(draw_line([1, 2, 5]), tmp_path / "three" / name)
    one, two, three = ((tmp_path / k / name).read_bytes() for k in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_figures_keep_to_themselves():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure, axes = lab.new_figure(3, 2, width=7, height=5)
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (7, 5)
    assert axes[0, 0].plot([1])[0].get_color() == lab.PALETTE[0]
    assert dict(matplotlib.rcParams) == before


def test_save_figure_names_its_formats(tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf; got 'a\.jpg'"):
        lab.save_figure(draw_line([1]), tmp_path / "a.jpg")


def test_the_palette_is_eight_different_colours():
    assert len({colour.lower() for colour in lab.PALETTE}) == 8


# --- script options --------------------------------------------------------------------------


def test_script_options(tmp_path):
    parser = lab.script_parser("what it does", default_out=tmp_path, epilog="and more")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args([])
    assert (options.seed, options.smoke, options.rounds) == (0, False, 3)
    assert isinstance(options.device, torch.device)
    assert options.out == tmp_path
    assert parser.parse_args(["--smoke"]).out == tmp_path / "runs" / "smoke"
    assert parser.parse_args(["--smoke", "--out", "x"]).out == Path("x")
    assert parser.parse_args(["--device", "cpu"]).device == torch.device("cpu")


def test_a_device_that_is_absent_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    parser = lab.script_parser("what it does", default_out=tmp_path)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--device", "abacus"])
    assert stop.value.code == 2
    assert "auto, cpu, cuda, cuda:N or mps; got 'abacus'" in capsys.readouterr().err


# --- results ---------------------------------------------------------------------------------


def write(path, results, **changes):
    provenance = {"command": "make", "seeds": [1, 2], "device": "cpu", "wall_seconds": 1.26}
    lab.write_results(path, results, **{**provenance, **changes})


def test_results_come_back_with_their_provenance(tmp_path):
    path = tmp_path / "new" / "results.json"
    results = {"loss": 1.5, "curve": [1.0, 0.5], "names": ["a", "b"], "none": None}
    write(path, results)
    assert lab.read_results(path) == results
    run = lab.read_run(path)
    assert run["command"] == "make"
    assert run["seeds"] == [1, 2]
    assert run["device"] == "cpu"
    assert run["wall_seconds"] == 1.3
    assert run["versions"]["torch"] == torch.__version__
    assert run["commit"] == "unknown"  # a temporary folder is no repository


def test_results_name_their_commit_and_whether_the_tree_differs_from_it(tmp_path):
    def git(*words):
        who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "one")
    write(tmp_path / "results.json", {})
    assert lab.read_run(tmp_path / "results.json")["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("a = 2\n")
    write(tmp_path / "results.json", {})
    assert (
        lab.read_run(tmp_path / "results.json")["commit"] == git("rev-parse", "HEAD") + "+changes"
    )


def test_numpy_and_tensors_become_plain_and_curves_stay_on_one_line(tmp_path):
    path = tmp_path / "results.json"
    write(path, {"a": np.float32(0.5), "b": torch.arange(3), "c": np.eye(2), "d": Path("x")})
    assert lab.read_results(path) == {"a": 0.5, "b": [0, 1, 2], "c": [[1, 0], [0, 1]], "d": "x"}
    write(path, {"curve": [1.5, -2e-9, 3], "strings": ["[ 1, 2 ]"]})
    assert '"curve": [ 1.5, -2e-09, 3 ]' in path.read_text()
    assert lab.read_results(path)["strings"] == ["[ 1, 2 ]"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float64("nan"), [1.0, -math.inf]])
def test_results_refuse_what_is_not_a_number(tmp_path, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "results.json", {"loss": bad})
    assert not (tmp_path / "results.json").exists()


def test_results_refuse_what_json_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="got Linear"):
        write(tmp_path / "results.json", {"model": nn.Linear(1, 1)})


def test_a_strange_file_is_no_results_file(tmp_path):
    (tmp_path / "a.json").write_text('{"loss": 1}')
    with pytest.raises(ValueError, match="no results file"):
        lab.read_results(tmp_path / "a.json")


# --- markers ---------------------------------------------------------------------------------

RESULTS = {
    "gap": {"mean": 0.8251, "count": 12345, "name": "wide"},
    "sizes": {"0.8M": {"loss": 2.0}, "0.8": {"M": 1.0, "1M": 4.0}, "0.8.1M": 3.0},
    "list": [{"x": 1.0}, {"x": 2.5}],
    "table": {
        "columns": ["model", "bits", "tokens"],
        "rows": [["a|b", 1.23456, 1000], ["c", None, 20]],
    },
}


@pytest.mark.parametrize(
    ("marker", "shown"),
    [
        ("r:gap.mean:.2f", "0.83"),
        ("r:gap.mean", "0.8251"),
        ("r:gap.mean:.1%", "82.5%"),
        ("r:gap.count:,", "12,345"),
        ("r:gap.count:>7", "  12345"),
        ("r:gap.name", "wide"),
        ("r:sizes.0.8M.loss:.1f", "2.0"),
        ("r:sizes.0.8.M:.1f", "1.0"),
        ("r:sizes.0.8.1M:.1f", "3.0"),
        ("r:list.1.x", "2.5"),
    ],
)
def test_inline_markers(marker, shown):
    text = f"so <!-- {marker} -->?<!-- /r --> and <!-- {marker} --><!-- /r -->."
    want = f"so <!-- {marker} -->{shown}<!-- /r --> and <!-- {marker} -->{shown}<!-- /r -->."
    assert lab.renew_markers(text, RESULTS) == want
    assert lab.renew_markers(want, RESULTS) == want


def test_table_markers():
    text = "before\n\n<!-- table:table -->\nold\n<!-- /table -->\nafter\n"
    want = (
        "before\n\n<!-- table:table -->\n"
        "| model |  bits | tokens |\n"
        "| ----- | ----: | -----: |\n"
        "| a\\|b  | 1.235 |  1,000 |\n"
        "| c     |     – |     20 |\n"
        "<!-- /table -->\nafter\n"
    )
    assert lab.renew_markers(text, RESULTS) == want
    assert lab.renew_markers(want, RESULTS) == want


def test_markers_in_code_are_left_alone():
    text = (
        "```md\n<!-- r:no.such -->1<!-- /r -->\n```\n"
        "~~~\n<!-- table:x -->\n~~~\n"
        "and `<!-- r:nor.this -->` and ``a ` <!-- /r -->`` but <!-- r:gap.name -->?<!-- /r -->"
    )
    assert lab.renew_markers(text, RESULTS) == text.replace("?", "wide")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<!-- r:gap.median -->1<!-- /r -->", "'gap.median': the results hold no such value"),
        ("<!-- r:list.2.x -->1<!-- /r -->", "no such value"),
        ("<!-- r:gap.name:.2f -->1<!-- /r -->", "r:gap.name:.2f"),
        ("<!-- r:gap:.2f -->1<!-- /r -->", "r:gap:.2f"),
        ("<!-- r:gap.mean -->1\n<!-- /r -->", "not opened and closed"),
        ("<!-- r:gap.mean -->1", "not opened and closed"),
        ("1<!-- /r -->", "not opened and closed"),
        ("<!-- table:table -->\n", "not opened and closed"),
        ("<!-- table:gap -->\n<!-- /table -->", "no table of columns and rows"),
    ],
)
def test_markers_that_cannot_be_renewed_say_so(text, error):
    with pytest.raises(ValueError, match=error):
        lab.renew_markers(text, RESULTS)


@given(st.text(alphabet=" ab`~\n<!->r:/", max_size=60))
def test_text_without_markers_is_not_touched(text):
    if "<!-- r:" not in text and "<!-- /r" not in text:
        assert lab.renew_markers(text, RESULTS) == text


def test_format_table_checks_its_rows():
    with pytest.raises(ValueError, match="a row of 1 in a table of 2 columns"):
        lab.format_table(["a", "b"], [["only"]])
    table = lab.format_table(["a", "b"], [[0.5, 2.0]], [".0%", ".2f"])
    assert table.splitlines()[-1] == "| 50% | 2.00 |"
    assert lab.format_table(["a"], []) == "| a   |\n| --- |"


def test_renew_readme_from_a_file_a_folder_or_several(tmp_path):
    readme = tmp_path / "README.md"
    write(tmp_path / "r" / "one.json", {"x": 1})
    write(tmp_path / "r" / "two.json", {"x": 2})

    readme.write_text("<!-- r:x --><!-- /r -->")
    assert lab.renew_readme(readme, tmp_path / "r" / "one.json")
    assert readme.read_text() == "<!-- r:x -->1<!-- /r -->"
    assert not lab.renew_readme(readme, tmp_path / "r" / "one.json")

    readme.write_text("<!-- r:two.x --><!-- /r -->")
    assert lab.renew_readme(readme, tmp_path / "r")
    assert readme.read_text() == "<!-- r:two.x -->2<!-- /r -->"

    readme.write_text("<!-- r:all.two.x --><!-- /r --><!-- r:first.x --><!-- /r -->")
    assert lab.renew_readme(readme, {"all": tmp_path / "r", "first": tmp_path / "r" / "one.json"})
    assert readme.read_text() == "<!-- r:all.two.x -->2<!-- /r --><!-- r:first.x -->1<!-- /r -->"


# --- measuring -------------------------------------------------------------------------------


def test_interval_by_hand():
    # t = 4.302653 at two degrees of freedom, from any printed table; the error is 1 / sqrt(3).
    mean, half = lab.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert lab.interval([1, 2, 3], 0.9)[1] == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = lab.interval(generator.normal(3.0, 2.0, size=4), 0.9)
        hits += abs(mean - 3.0) <= half
    assert hits / 2000 == pytest.approx(0.9, abs=0.025)  # 0.025 is 3.7 standard errors


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([1.0], 0.95), ([1.0, 2.0], 1.0)])
def test_interval_refuses_what_has_none(values, confidence):
    with pytest.raises(ValueError, match=r"two values|between 0 and 1"):
        lab.interval(values, confidence)


def test_contestants_take_turns_and_each_round_begins_with_another():
    order = []
    functions = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = lab.time_side_by_side(functions, rounds=4, warmup=2)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 6
    assert all(sorted(turn) == list("abc") for turn in rounds)
    assert {turn[0] for turn in rounds} == set("abc")
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.seconds) == 4 for timing in timings.values())


def test_timing_arithmetic():
    slow = lab.Timing(seconds=(2.0, 8.0, 4.0))
    fast = lab.Timing(seconds=(1.0, 2.0, 1.0))
    assert (slow.median, slow.min, slow.max) == (4.0, 2.0, 8.0)
    assert slow.ratios(fast) == (2.0, 4.0, 4.0)
    assert fast.speedup_over(slow) == 4.0


def test_time_side_by_side_needs_something_to_time():
    with pytest.raises(ValueError, match="need a function and a round"):
        lab.time_side_by_side({})


def test_peak_memory_is_the_process_s_own():
    """A child sees its own peak: 300 MB more when it holds 300 MB, and not what we hold."""
    ballast = np.ones(50_000_000)  # 400 MB in this process

    def peak(code):
        script = f"import numpy as np; import lab; {code}; print(lab.peak_memory_bytes())"
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    small, large = peak("pass"), peak("x = np.ones(37_500_000); del x")
    assert large - small == pytest.approx(300e6, rel=0.1)
    assert lab.peak_memory_bytes() > small + ballast.nbytes / 2


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Embedding(11, 3), nn.Linear(3, 11))
    assert lab.count_parameters(model) == 33 + 33 + 11
    model[1].weight = model[0].weight
    assert lab.count_parameters(model) == 33 + 11
    model[0].weight.requires_grad_(False)
    assert lab.count_parameters(model, trainable_only=True) == 11


def test_what_is_shown_by_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    list(lab.progress(range(3), desc="bar", unit="step"))
    assert "3/3" in screen.getvalue()
    assert "step" in screen.getvalue()


def test_results_are_json_that_anyone_reads(tmp_path):
    write(tmp_path / "results.json", {"é": "ü"})
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["results"] == {"é": "ü"}
    assert list(content) == ["run", "results"]
