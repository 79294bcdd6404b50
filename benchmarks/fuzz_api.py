"""Odd arguments for the library's own functions: what the fuzz calls from Python."""

from __future__ import annotations

import random

import click
from fuzz_calls import Case

ODD = (
    "float('nan')", "float('inf')", "-float('inf')", "-1", "0", "-0.0", "1e400", "10**12",
    "10**400", "2**63", "2**64", "-2**63 - 1", "1.5", "255", "True", "None", "''", "'x'", "'²'",
    "'0.1'", "[]", "[1]", "{}", "b'x'", "object()", "1j", "Fraction(1, 3)", "torch.tensor(1.0)",
    "torch.tensor([1.0, 2.0])", "numpy.float32(2)",
)  # fmt: skip
# The call, with {} where the odd argument goes, and the name that an error must give.
CALLS = (
    *((f"{ball}({{}})", "eps") for ball in ("Linf", "L2", "L1", "Flow")),
    ("Threat({})", "ball"),
    ("Threat(Linf(), {})", "knows"),
    ("Threat(Linf(), ('forward',), pool={})", "pool"),
    ("Threat(Linf(), ('forward',), mix={})", "mix"),
    *(
        (f"PGD({name}={{}})", name)
        for name in ("steps", "step_size", "eot", "average", "loss", "target", "start")
    ),
    *(
        (f"Plan({name}={{}})", name)
        for name in ("updates", "batch", "lr", "rate", "dropout", "save_every")
    ),
    ("load_classifier({})", "classifier"), ("load_denoiser({})", ""), ("digits({})", "split"),
    ("digits('test').sample({})", ""), ("read_image({})", ""), ("image_folder({})", ""),
    ("write_image(torch.zeros(1, 2, 2), {})", ""), ("list_images({})", ""), ("load_run({})", ""),
    ("report({})", ""), ("cifar({}, 'test')", ""), ("new_classifier({}, 1, 10)", "arch"),
    ("new_unet({}, 1)", "size"), ("new_unet(8, 1, {})", "widths"),
)  # fmt: skip
SETUP = """
from fractions import Fraction
import numpy, torch
from depure.threat import Linf, L2, L1, Flow, Threat
from depure.attacks import PGD
from depure.training import Plan
from depure.zoo import load_classifier, load_denoiser
from depure.zoo.build import new_classifier, new_unet
from depure.data import digits, read_image, image_folder, write_image, list_images, cifar
from depure.reporting import report
from depure.reporting.load import load_run
"""


def api_case(root: click.Group, rng: random.Random) -> Case:
    """One call from Python. Numbers and texts of the wrong value, and things of the wrong type."""
    call, name = rng.choice(CALLS)
    odd = rng.choice(ODD)
    size = odd in ODD[:3] or odd in ("-1", "0", "-0.0", "1e400")
    absurd = (size and name in ("eps", "steps", "eot", "updates", "batch")) or (
        call.startswith("Linf") and odd in ("1.5", "255", "2**63")
    )
    return Case("python", names=(name,), absurd=absurd, code=call.format(odd))
