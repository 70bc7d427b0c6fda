"""What the shipped models know: every question of the world, by group.

    .venv/bin/python benchmarks/world_model.py [FOLDER …]       a minute on two cores

Exact: each token of the answer and of the full stop after it is the model's first choice. "_new":
nothing of the kind was in the training text (data/world/questions.py).
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from measure import report

import jaxedit
from jaxedit.data.world import GROUPS, make, questions
from jaxedit.evaluate.exact import exact


def main() -> None:
    world = make("small")
    asked = {group: questions(world, group) for group in GROUPS}
    for name in sys.argv[1:] or ("world", "world-llama"):
        model = jaxedit.load(name, dtype="float32")
        right = {group: exact(model, some, ending=".").mean() for group, some in asked.items()}
        counts = {group: len(some) for group, some in asked.items()}
        shares = {group: round(float(share), 4) for group, share in right.items()}
        report(f"what {name} answers exactly", **shares, questions=counts)


if __name__ == "__main__":
    main()
