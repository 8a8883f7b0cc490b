"""Counts the products of a traced program, loops included: what closed forms are held to."""

import math

import jax


def products(function, *arguments, rounds: int = 1) -> float:
    """Operations of all matrix products and convolutions in `function`, 2 M K N each.

    Args:
      function: to be traced.
      arguments: arrays or `ShapeDtypeStruct`.
      rounds: of every `while_loop`, which says nothing of them.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, rounds)


def _count(jaxpr, rounds: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            places = params["dimension_numbers"].rhs_spec
            per_output = math.prod(kernel) / kernel[places[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output
        elif name == "cond":
            total += max(_count(branch.jaxpr, rounds) for branch in params["branches"])
        else:
            times = {"scan": params.get("length", 1), "while": rounds}.get(name, 1)
            total += times * sum(_count(inner, rounds) for inner in _inner(params))
    return total


def _inner(params):
    for value in params.values():
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
