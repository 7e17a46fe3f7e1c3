"""The errors that the user can mend, and the names that modules offer each other."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import discernment
from discernment import errors

PACKAGE = Path(discernment.__file__).parent


def test_the_docstring_draws_the_classes_there_are():
    places = re.findall(r"^    (│ *)?[├└]── (\w+)  ", errors.__doc__, re.MULTILINE)
    drawn = [name for _, name in places]
    classes = {
        n: c for n, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
    }
    assert len(drawn) > 3
    assert {*drawn, "DiscernmentError"} == set(classes)
    above = errors.DiscernmentError
    for within, name in places:
        assert classes[name].__bases__ == (above if within else errors.DiscernmentError,)
        assert classes[name].__doc__
        above = above if within else classes[name]


def modules():
    """The tree of every module by its name, and the names of those that are packages."""
    trees, packages = {}, set()
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem == "__init__":
            packages.add(name)
    return trees, packages


def defined(tree):
    """What a module defines itself, at its top."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} if target else set()
    return names


def offered(tree):
    """What a package's `__init__` says that it offers."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_modules_import_public_names_from_where_they_are_defined():
    trees, packages = modules()
    there = {
        name: defined(tree) | (offered(tree) if name in packages else set()) for name, tree in trees.items()
    }
    imports = [
        (user, node.module, alias.name)
        for user, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in trees
        for alias in node.names
    ]
    assert len(imports) > 500
    assert [i for i in imports if re.match(r"_(?!_)", i[2])] == []
    of_modules = [i for i in imports if f"{i[1]}.{i[2]}" in trees]
    assert [i for i in imports if i not in of_modules and i[2] not in there[i[1]]] == []
    borrowed = {(user, name) for user, _, name in of_modules}
    assert len(borrowed) > 5
    private = [
        (user, ast.unparse(node))
        for user, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (user, node.value.id) in borrowed and node.attr.startswith("_")
    ]
    assert private == []


def test_only_packages_list_what_they_offer():
    trees, packages = modules()
    assert [name for name, tree in trees.items() if name not in packages and "__all__" in defined(tree)] == []
    lists = {name: offered(trees[name]) for name in packages}
    assert sum(map(bool, lists.values())) > 3
    for name, names in lists.items():
        assert {n for n in names if not hasattr(importlib.import_module(name), n)} == set(), name


def test_files_and_functions_stay_short():
    longest = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert len(longest) > 100
    assert [str(path) for path, lines in longest.items() if lines > 400] == []
    functions = [
        (path.name, node.name, node.end_lineno - node.lineno + 1)
        for path in longest
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [f for f in functions if f[2] > 60] == []
