"""The house: arrows point down, one door, and an import that leaves no trace."""

import ast
import subprocess
import sys
from pathlib import Path

import unitary_layers

ROOT = Path(unitary_layers.__file__).parent
# The storeys from the ground up; a module imports only from lower lines, and within a line only in the order given.
LEVELS = (
    ("_version",),
    # what is true of tensors
    ("linalg.check", "linalg.transforms", "linalg.hadamard"),
    ("linalg.polar", "linalg.unitary", "linalg.lowrank", "linalg.thin"),
    ("linalg.signal.grid", "linalg.signal.spectrum", "linalg.signal.kernel", "linalg.signal.bound"),
    ("linalg.adjacency", "linalg.chebyshev", "linalg.dihedral"),
    ("linalg.signal", "linalg"),
    ("init",),
    ("projunn.gradient", "projunn.noise", "projunn.sampling"),
    ("projunn.isometry", "projunn.rotation"),
    ("projunn.direction", "projunn.slope", "projunn.rule"),
    ("projunn",),
    # how the weights of modules are trained by it
    ("training.precision", "training.memory", "training.content", "training.collected", "training.weight"),
    ("training.owners", "training.watch"),
    ("training.reduced", "training.batch", "training.lazy"),
    ("training.parallel.shared", "training.parallel.comm_hook", "training.parallel"),
    ("training.factored.once", "training.factored.collect", "training.factored.graphs"),
    ("training.factored.amp", "training.factored"),
    ("training.step",),
    ("training.triggers.given", "training.triggers.rates", "training.triggers.saved", "training.triggers.backward"),
    ("training.triggers.telling",),
    ("training.triggers.guests", "training.triggers.host", "training.triggers.strangers"),
    ("training.triggers.attach", "training.triggers.optimizer"),
    ("training.triggers", "training"),
    # the modules themselves
    ("layers.base.inputs", "layers.base.symbolic", "layers.base.states", "layers.base.loading", "layers.base.methods"),
    ("layers.base.quantise", "layers.base.module", "layers.base.forward", "layers.base.signs"),
    ("layers.base",),
    ("layers.activation", "layers.linear", "layers.born", "layers.attention", "layers.hadamard"),
    ("layers.development.products", "layers.development.development", "layers.development"),
    ("layers.graph.exponential", "layers.graph.convolution", "layers.graph"),
    ("layers.group.convolution", "layers.group"),
    ("layers.recurrent.packed", "layers.recurrent.linear", "layers.recurrent.fused", "layers.recurrent.operator"),
    ("layers.recurrent.scan", "layers.recurrent.signed", "layers.recurrent.impulse"),
    ("layers.recurrent.options", "layers.recurrent.cell", "layers.recurrent.rnn", "layers.recurrent.hadamard"),
    ("layers.recurrent.diagonal", "layers.recurrent.ragged", "layers.recurrent.ssm_base", "layers.recurrent.ssm"),
    ("layers.recurrent.vocabulary", "layers.recurrent.products", "layers.recurrent.planes"),
    ("layers.recurrent.word_scan", "layers.recurrent.words"),
    ("layers.recurrent",),
    ("layers.conv.full", "layers.conv.local", "layers.conv.support", "layers.conv.padding"),
    ("layers.conv.orthogonalnd", "layers.conv.applied", "layers.conv.orthogonal", "layers.conv.orthogonal_transpose"),
    ("layers.conv.cell",),
    ("layers.conv.reads", "layers.conv.stiefelnd", "layers.conv.stiefel", "layers.conv.stiefel_transpose"),
    ("layers.conv",),
    ("layers",),
    # what certificates need beside them
    ("robust.certificate", "robust.bracket", "robust.losses", "robust.channels", "robust.unaltered"),
    ("robust.activation", "robust.centering", "robust.linear", "robust.pooling", "robust.reflect", "robust.shift"),
    ("robust.bound",),
    ("robust",),
    ("conversion.report", "conversion.kinds", "conversion.swap", "conversion.plan", "conversion.values"),
    ("conversion.ties", "conversion.convert", "conversion"),
    ("models.arguments", "models.pretrained", "models.protocol", "models.blocks"),
    ("models.orthoresnet", "models.unitary_pixel"),
    ("models.whitening", "models.stiefelnet", "models.unitary_pixel_ssm", "models.orthovit", "models"),
    ("testing",),
    ("",),
    ("__main__",),
)
# What a storey must not know, whatever the arrows say: names of torch that it may not mention.
UNKNOWN = {
    "linalg": ("nn.Module", "nn.Parameter", ".grad", "torch.optim", "torch.distributed", "torch.amp"),
    "projunn": ("nn.Module", "nn.Parameter", ".grad", "torch.optim", "torch.distributed", "torch.amp"),
    "init": ("nn.Module", "torch.optim", "torch.distributed"),
    "training": ("unitary_layers.layers", "unitary_layers.models"),
    "layers": ("torch.optim", "torch.nn.parallel"),
    "robust": ("torch.optim", "torch.nn.parallel"),
    "conversion": ("torch.optim", "torch.nn.parallel"),
}
ORDER = {name: i for i, name in enumerate(name for level in LEVELS for name in level)}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> list[str]:
    """The modules of the package that a file imports, by names relative to the package."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, node.module] if node.module else base)
            found.append(target)
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            assert not any(n.split(".")[0] == "unitary_layers" for n in names), f"{path}: import relatively"
    return found


def test_arrows_point_down():
    known = modules()
    assert set(known) == set(ORDER), "every module has its place in LEVELS"
    for name, path in known.items():
        for target in imports(name, path):
            assert ORDER[target] < ORDER[name], f"{name or '__init__'} imports {target}, which is above it"


def mentions(tree: ast.Module) -> set[str]:
    """Every name that a file imports or reaches through dots, as it is written, without comments and docstrings."""
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def trespasses(storey: str, tree: ast.Module) -> list[str]:
    """What a file of a storey mentions and must not know: a dotted name, or an attribute if it begins with a dot."""
    found = []
    for forbidden in UNKNOWN.get(storey, ()):
        for name in mentions(tree):
            is_part = f".{name}.".find(f"{forbidden}." if forbidden[0] == "." else f".{forbidden}.") >= 0
            found += [name] if is_part else []
    return found


def test_storeys_know_nothing_of_what_is_above_them():
    for name, path in modules().items():
        storey = name.split(".")[0]
        assert trespasses(storey, ast.parse(path.read_text())) == [], name


def test_the_tests_of_arrows_and_storeys_see_them():
    known = modules()
    assert "projunn.rule" in imports("training.batch", known["training.batch"])
    assert "linalg" in imports("projunn.rotation", known["projunn.rotation"])
    assert "layers" in imports("", known[""])
    for text in (
        "from torch.nn import Module",
        "import torch.optim",
        "from torch.optim import SGD",
        "import torch.distributed as dist",
        "x = parameter.grad",
        "class A(nn.Module): pass",
        "class A(torch.nn.Module): pass",
    ):
        assert trespasses("projunn", ast.parse(text)), text
    assert not trespasses("projunn", ast.parse("with torch.no_grad(): torch.gradient(x)"))


# documented where they are first declared, here or in torch
OVERRIDES = {"forward", "backward", "extra_repr", "add_param_group", "shape", "dtype", "device", "matmul", "rmatmul"}
OVERRIDES |= {"column_norms", "along", "dense", "is_finite", "numel", "scale", "setup_context"}


def test_files_are_small_and_open_with_their_purpose():
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        assert len(path.read_text().splitlines()) <= 260, name
        assert name == "_version" or ast.get_docstring(tree), name


def public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a module, and the methods of the classes, without those that begin with _."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    inside = [n for node in top if isinstance(node, ast.ClassDef) for n in node.body if isinstance(n, kinds)]
    return top + [node for node in inside if not node.name.startswith("_")]


def test_what_is_public_has_a_docstring():
    for name, path in modules().items():
        for node in public_definitions(ast.parse(path.read_text())):
            setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
            assert ast.get_docstring(node) or setter or node.name in OVERRIDES, f"{name}.{node.name}"


def test_functions_are_short():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                code = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - code[0].lineno + 1 if code else 0
                assert lines <= 40, f"{name}.{node.name} has {lines} lines"


def test_every_public_name_is_at_the_door():
    promised = "UnitaryLinear UnitaryRNN UnitaryRNNCell ModReLU GroupSort UpdateRule projunn_step attach ProjUNN"
    promised += " OrthogonalConv1d OrthogonalConv2d OrthogonalConv3d support_penalty space_to_depth depth_to_space"
    promised += " OrthogonalConvTranspose1d OrthogonalConvTranspose2d OrthogonalConvTranspose3d"
    promised += " orthogonality_bound orthogonality_penalty"
    promised += " OrthogonalConvRNNCell UnitaryWordRNN StiefelConv1d StiefelConv2d"
    promised += " StiefelConv3d StiefelConvTranspose1d StiefelConvTranspose2d StiefelConvTranspose3d"
    promised += " HadamardLinear HadamardRNN UnitaryDevelopment UnitaryMultiheadAttention convert revert"
    promised += " UnitarySSM UnitaryGraphConv UnitaryGroupConv UnitaryPixelSSM OrthoViT"
    promised += " OrthoResNet StiefelNet UnitaryPixelRNN unitary_weights drop_gradients share_gradients use_grad_scaler"
    promised += " projunn_d projunn_t low_rank unitarity_error nearest_unitary haar_unitary retract_ __version__"
    assert [name for name in promised.split() if not hasattr(unitary_layers, name)] == []


def test_importing_leaves_no_trace():
    script = """
import random, sys, warnings
import numpy, torch, timm, timm.optim
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), warnings.filters[:],
            {name: timm.model_entrypoint(name) for name in names})
names = timm.list_models()
before, optimizers = state(), timm.optim.list_optimizers()
import unitary_layers
assert state() == before
assert set(timm.optim.list_optimizers()) == set(optimizers) | {"projunn"}
added = set(timm.list_models()) - set(names)
assert added and all(name.endswith("_projunn") for name in added)
assert "matplotlib" not in sys.modules and "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
