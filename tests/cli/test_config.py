"""`--config`: values as they would be typed; nothing that hangs, runs code or leaves the file."""

import pytest

QUICK = "--images 2 --steps 1 --draws 2 --attack-steps 1 --eot 1 --check-images 0"


def _bomb(levels=9):
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"title: *a{levels - 1}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(), "aliases have no place here"),
        ("title: &a [*a]", "aliases have no place here"),
        ("title: " + "[" * 3000, "too deep"),
        ("title: [[a]]", "title has no single value"),
        ("title: {a: b}", "title has no single value"),
        ("title:", "title has no single value"),
        ("title: a\ntitle: b", "sets 'title' twice"),
        ("[1]: 2", "a line without a name"),
        ("seed: " + "9" * 6000, "--seed"),
        ("seed: 0x" + "f" * 6000, "--seed"),
        ("eps: .nan", "--eps"),
        ("eps: 1e99999999", "--eps"),
        ("seed: 2020-99-99", "--seed"),
        ("title: !!binary x", "has no single value"),
        ("title: !!python/name:os.system ''", "not valid YAML"),
        ("title: !mine x", "not valid YAML"),
        ('out: "a\\0b"', "out holds a null byte"),
        ("title: a\n---\ntitle: b", "not valid YAML"),
        ("x" * 200_000, "more than 100,000 bytes"),
        (b"title: \xff", "not UTF-8"),
        (b"\x00", "not valid YAML"),
        ("", "must hold `option: value` lines"),
    ],
)
def test_odd_files_are_refused_in_one_sentence(fails, tmp_path, text, said):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "c.yaml").write_bytes(data)
    fails(f"evaluate {QUICK} --config c.yaml", said)
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_a_folder_or_too_long_a_name_is_no_configuration(fails, tmp_path):
    fails(f"evaluate --config {tmp_path}", "no file and no recipe")
    fails(f"evaluate --config {'n' * 300}", "cannot be read")


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("evaluate --config diffpure-cifar10-linf", "--data"),
        ("evaluate --config adbm-cifar10-linf --data x", "--classifier"),
        ("evaluate --config addt-cifar10-linf --data x --classifier resnet56:x", "--denoiser"),
        ("evaluate --config addt-cifar10-linf --data digits", "--data"),
    ],
)
def test_recipes_for_cifar_refuse_the_digits(fails, line, missing):
    fails(line, "is for CIFAR-10, not for the bundled digits", f"'{missing}'")


def test_a_recipe_with_everything_given_gets_as_far_as_the_files(fails):
    given = "--data nowhere --classifier resnet56:nothing.safetensors --denoiser nothing"
    fails(f"evaluate --config diffpure-cifar10-linf {given}", "--denoiser: no folder nothing")
