import json
import shutil


def test_every_run_has_a_line_of_80_columns(cli, run_copy, adapter):
    shutil.copytree(run_copy, run_copy.parent / "other")
    (run_copy.parent / "other" / "base" / "run.json").unlink()
    code, out, err = cli("runs", run_copy.parent)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()[1:] if "/" not in line) <= 80
    (line,) = [line for line in out.splitlines() if line.startswith(" run ") and "digits" in line]
    assert adapter.name in line
    assert "is damaged" in " ".join(out.split())
    whole = json.loads(cli("runs", run_copy.parent, "--json")[1])
    digests = [one["digest"] for one in whole["runs"] if "digest" in one]
    assert len(digests) == 1
    assert f" {digests[0][:8]}" in line


def test_a_folder_without_runs_says_so(cli, tmp_path):
    code, out, err = cli("runs", tmp_path)
    assert (code, " ".join(out.split()), err) == (0, f"There is no run below {tmp_path}.", "")
    assert cli("runs", tmp_path / "none")[0] == 4


def test_a_run_without_adapters_has_a_line_too(cli, run_copy, adapter):
    shutil.rmtree(adapter)
    code, out, err = cli("runs", run_copy.parent)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith(" run ") and "digits" in line]
    assert line.split()[2:8] == ["89.69", "%", "0", "-", "-", "-"]
    assert " ".join(cli("adapters", "--run", run_copy)[1].split()).startswith(f"{run_copy} has no adapters yet.")
