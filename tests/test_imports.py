"""Imports point one way: a module imports only from modules above it, so the tree can be read in
order.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxedit"
ORDER = [
    "memory",
    "files",
    "progress",
    "base",
    "sharding",
    "tensorfile",
    "delta",
    "fit",
    "checksum",
    "leaves",
    "checkpoint",
    "settings",
    "cli",
    "models.config",
    "merge",
    "models.shapes",
    "models.specs",
    "models.sites",
    "models.products",
    "models.attention",
    "models.layers",
    "models.vocabulary",
    "models.cache",
    "models.transformer",
    "models.generate",
    "hf.config",
    "hf.families",
    "hf.round_trip",
    "hf.weights",
    "hf.load",
    "hf.save",
    "hf.peft",
    "data.cases",
    "data.files",
    "data.fields",
    "data.knowedit",
    "data.counterfact",
    "data.zsre",
    "data.mquake",
    "data.ripple",
    "data.known",
    "data.pararel",
    "data.exams",
    "data.read",
    "data.world.relations",
    "data.world.names",
    "data.world.facts",
    "data.world.questions",
    "data.world.corpus",
    "data.world.cases",
    "data.world.vocabulary",
    "data.requests",
    "data.asked",
    "data.aligned",
    "data.answers",
    "data.lessons",
    "data.contexts",
    "data.bytewise",
    "data.documents",
    "data.tokens",
    "data.text",
    "locate.passes",
    "locate.neurons",
    "locate.knowledge_neurons",
    "locate.direct",
    "locate.attribution",
    "locate.questions",
    "locate.lens",
    "locate.memories",
    "locate.specific",
    "locate.census",
    "locate.probe",
    "edit.router",
    "edit.record",
    "edit.conflicts",
    "edit.log",
    "edit.ledger",
    "edit.solve",
    "edit.moments",
    "edit.stats",
    "edit.corner",
    "edit.values",
    "edit.editor",
    "edit.room",
    "edit.descent",
    "edit.inner",
    "edit.abreast",
    "edit.learner",
    "edit.weights.rome",
    "edit.weights.memit",
    "edit.weights.pmet",
    "edit.weights.emmet",
    "edit.weights.alphaedit",
    "edit.weights.fine_tune",
    "edit.weights.lora",
    "edit.weights.adalora",
    "edit.weights.kn",
    "edit.weights.bird",
    "edit.weights.mend",
    "edit.weights.ke",
    "edit.weights.slag",
    "edit.weights.enn",
    "edit.weights.malmen",
    "edit.prompts.encoder",
    "edit.prompts.memory",
    "edit.prompts.serac_learner",
    "edit.prompts.serac",
    "edit.presets",
    "edit.methods",
    "edit.learned",
    "edit.results",
    "edit.runner",
    "locate.trace",
    "locate.explain",
    "evaluate.exact",
    "evaluate.seen",
    "evaluate.metrics",
    "evaluate.texts",
    "evaluate.scores",
    "evaluate.summary",
    "evaluate.errors",
    "evaluate.analysis",
    "evaluate.growth",
    "evaluate.hits",
    "evaluate.overlap",
    "evaluate.carry",
    "evaluate.route",
    "evaluate.ask",
    "evaluate.observe",
    "evaluate.protocol",
    "evaluate.records",
    "evaluate.references",
    "evaluate.runner",
    "evaluate.likelihood",
    "evaluate.choice",
    "evaluate.perplexity",
    "evaluate.ability",
    "evaluate.harness",
    "evaluate.findings",
    "locate.task",
    "locate.facts",
    "locate.compare",
    "edit.task",
    "evaluate.outcome",
    "evaluate.task",
    "bounds.project",
    "bounds.subspace",
    "bounds.quantize",
    "bounds.code",
    "bounds.bound",
    "train.optimizer",
    "train.loss",
    "train.loop",
    "train.language",
    "train.editor",
    "bounds.sample",
    "bounds.risk",
    "bounds.family",
    "bounds.fit",
    "bounds.baselines",
    "bounds.claims",
    "bounds.certificate",
    "bounds.verify",
    "bounds.sweep",
    "bounds.message",
    "bounds.bits",
    "report.plots",
    "report.names",
    "report.charts",
    "report.html",
    "report.folder",
    "report.findings",
    "report.pictures",
    "report.cases",
    "report.run",
    "report.comparison",
    "report.survey",
    "report.png",
    "report.bounds",
    "report.traces",
    "report.neurons",
    "__main__",
    "hf.__main__",
    "train.__main__",
    "edit.__main__",
    "report.__main__",
    "bounds.__main__",
    "locate.__main__",
    "evaluate.__main__",
    "editing",
    "edits",
    "locating",
    "console",
    "demo",
]


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxedit":
            base = node.module.removeprefix("jaxedit").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                found.add(name if (PACKAGE / (name.replace(".", "/") + ".py")).exists() else base)
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("jaxedit.")]
            found |= {name.removeprefix("jaxedit.") for name in names}
    return found - {""}


def test_every_module_has_its_place():
    files = {module(p) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    assert files == set(ORDER), "a new module belongs into ORDER, after all that it imports"


def test_imports_point_up():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        name = module(path)
        below = [i for i in imported(path) if ORDER.index(i) >= ORDER.index(name)]
        assert not below, f"{name} imports {below}, which come after it"


def test_importing_the_package_and_its_cli_does_not_import_jax():
    """`jaxedit --help` answers at once."""
    import subprocess
    import sys

    program = "import sys, jaxedit, jaxedit.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_main_is_short():
    for path in PACKAGE.rglob("__main__.py"):
        assert len(path.read_text().splitlines()) <= 60, path
