"""Command lines as their user types them: `main()` with real arguments, output and status."""

import pytest

from depure.cli.main import main


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run one command line in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(line):
        monkeypatch.setattr("sys.argv", ["depure", *line.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


@pytest.fixture
def fails(run):
    """Run a line that must fail with one sentence that holds these words, and no traceback."""

    def call(line, *words):
        status, _, err = run(line)
        assert status != 0
        assert "Traceback" not in err
        for word in words:
            assert word in err, err
        return err

    return call
