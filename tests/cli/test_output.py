from lora_mnist.cli.output import print_all


def test_the_name_of_a_folder_moves_no_cursor(capsys):
    print_all("runs/a\x1b[2J\x1b[31mb\x9bé · nine")
    assert capsys.readouterr().out == "runs/a\\x1b[2J\\x1b[31mb\\x9bé · nine\n"


def test_on_a_terminal_colours_stay_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_all("\x1b[2J\x1b[31mred\x1b[0m")
    assert capsys.readouterr().out == "\\x1b[2J\x1b[31mred\x1b[0m\n"
