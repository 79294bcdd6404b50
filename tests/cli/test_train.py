import json

from depure.zoo import load_denoiser


def test_train_addt_gives_a_denoiser_folder(run, tmp_path):
    line = "train addt --updates 20 --batch 4 --iterations 1 --out m"
    status, out, _ = run(line)
    assert status == 0
    assert "--denoiser m" in out
    first = load_denoiser(str(tmp_path / "m"))
    start = load_denoiser("digits")
    assert first.schedule == start.schedule
    moved = sum(
        float((a - b).abs().sum())
        for a, b in zip(first.parameters(), start.parameters(), strict=True)
    )
    assert moved > 0
    lines = (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["update"] == 20
    assert not (tmp_path / "m" / "checkpoint.safetensors").exists()
    assert "perturbation='rbgm'" in (tmp_path / "m" / "MODEL_CARD.md").read_text()
    status, out, _ = run("verify-gradient --denoiser m --steps 2 --images 2")
    assert status == 0


def test_bad_training_input(fails):
    fails("train addt --perturbation rgbm", "'rgbm' is not one of")
    fails("train addt --unit -1", "unit must be")
    fails("train addt --data nowhere", "nowhere")
    fails("train addt --denoiser nowhere", "nowhere")
    fails("train addt --lr 0", "lr must be above 0")
