"""A recipe without a mistake, and the same with one thing changed."""

import copy

GOOD = {
    "name": "try",
    "model": "some/model",
    "data": {
        "general": {"set": "starter/benign", "split": "train"},
        "safety": ["starter/toxic"],
        "contrast": {"set": "starter/pairs", "split": "train"},
    },
    "refine": {"layer": 2},
    "methods": ["base", "stl", {"method": "dcr", "name": "deep", "refine": {"layer": 3}}],
    "evaluate": {"benchmarks": [{"set": "starter/pairs", "name": "pairs", "split": "test"}]},
}


def changed(path, value):
    """`GOOD` with `value` at `path`; without the key where `value` is None."""
    recipe = copy.deepcopy(GOOD)
    *groups, last = path.split(".")
    place = recipe
    for group in groups:
        place = place[int(group)] if isinstance(place, list) else place.setdefault(group, {})
    if value is None:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return recipe
