"""Runs what the parser has read."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

from officegrid.testing.hyperv.parser import Node, parse
from officegrid.testing.hyperv.values import (
    Block,
    Char,
    Named,
    PsError,
    Thing,
    formatted,
    lookup,
    same,
    text,
    truth,
)

Cmdlet = Callable[["Call"], Iterable[Any]]


class Call:
    """One call of a cmdlet: its arguments, checked against what the cmdlet documents."""

    def __init__(self, name: str, shell: Evaluator, incoming: list[Any] | None) -> None:
        self.name = name
        self.shell = shell
        self.incoming = incoming
        """What comes through the pipe; None at its beginning."""
        self.named: dict[str, Any] = {}
        self.positional: list[Any] = []

    def get(self, name: str, default: Any = None) -> Any:
        return self.named.get(name, default)

    @property
    def quiet(self) -> bool:
        return text(self.get("ErrorAction")).lower() in ("silentlycontinue", "ignore")


class Signature:
    """A cmdlet with its documented parameters: `names` take a value, `switches` do not, and
    values without a name go to `positions`, one after another."""

    def __init__(
        self, run: Cmdlet, names: str = "", switches: str = "", positions: str = ""
    ) -> None:
        self.run = run
        self.names = (*names.split(), "ErrorAction")
        self.switches = tuple(switches.split())
        self.positions = tuple(positions.split())


class Evaluator:
    """One PowerShell: its cmdlets, types and variables."""

    def __init__(
        self, cmdlets: dict[str, Signature], types: dict[str, Thing], globals_: dict[str, Any]
    ) -> None:
        self.cmdlets = cmdlets
        self.types = types
        self.scopes: list[dict[str, Any]] = [globals_]
        self.missing: Callable[[str], PsError] = _no_command

    def run(self, source: str) -> list[Any]:
        """The outputs of a script. Raises PsError."""
        return self.body(parse(source))

    # -- variables ----------------------------------------------------------------------------

    def variable(self, name: str) -> Any:
        lower = name.lower()
        if lower in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[lower]
        for scope in reversed(self.scopes):
            if lower in scope:
                return scope[lower]
        return None

    def assign(self, target: Node, value: Any) -> None:
        if target[0] == "variable":
            if target[1].lower() != "null":
                self.scopes[-1][target[1].lower()] = value
            return
        if target[0] == "member":
            owner = self.value(target[1])
            if isinstance(owner, dict):
                owner[target[2]] = value
                return
        if target[0] == "static":
            owner = self.type_of(target[1][1])
            found, setter = lookup(owner.setters, target[2])
            if found:
                setter(value)
                return
        raise PsError("InvalidOperation", "PropertyNotFound", f"cannot set {target}")

    # -- statements ---------------------------------------------------------------------------

    def body(self, nodes: tuple[Node, ...]) -> list[Any]:
        outputs: list[Any] = []
        for node in nodes:
            outputs += self.statement(node)
        return outputs

    def in_scope(self, nodes: tuple[Node, ...], **variables: Any) -> list[Any]:
        self.scopes.append(dict(variables))
        try:
            return self.body(nodes)
        finally:
            self.scopes.pop()

    def statement(self, node: Node) -> list[Any]:
        if node[0] == "set":
            outputs = self.statement(node[2])
            # An array literal stays one, however short; other outputs are unwrapped.
            whole = node[2][0] == "pipe" and len(node[2][1]) == 1 and node[2][1][0][0] == "array"
            self.assign(node[1], outputs if whole else _unwrapped(outputs))
            return []
        if node[0] == "if":
            chosen = node[2] if truth(self.value(node[1])) else node[3]
            return self.body(chosen)
        if node[0] == "try":
            try:
                return self.body(node[1])
            except PsError as error:
                return self.in_scope(node[2], _=error.record())
        return self.pipe(node[1])

    def pipe(self, parts: tuple[Node, ...]) -> list[Any]:
        flow: list[Any] | None = None
        for part in parts:
            flow = self.part(part, flow)
        return flow or []

    def part(self, node: Node, incoming: list[Any] | None) -> list[Any]:
        if node[0] == "command":
            return self.command(node[1], node[2], incoming)
        if node[0] == "call":
            block = self.value(node[1])
            if not isinstance(block, Block):
                raise PsError("InvalidOperation", "BadExpression", "& needs a script block")
            return self.in_scope(block.body)
        value = self.value(node)
        if value is None and node[0] == "invoke":
            return []  # a method without a result gives nothing, not null
        return list(value) if isinstance(value, list) else [value]

    def command(
        self, name: str, arguments: tuple[Node, ...], incoming: list[Any] | None
    ) -> list[Any]:
        found, signature = lookup(self.cmdlets, name)
        if not found:
            raise self.missing(name)
        call = Call(name, self, incoming)
        self._bind(call, signature, list(arguments))
        try:
            return list(signature.run(call))
        except PsError:
            if call.quiet:
                return []
            raise

    def _bind(self, call: Call, signature: Signature, arguments: list[Node]) -> None:
        known = {one.lower(): one for one in signature.names}
        switches = {one.lower(): one for one in signature.switches}
        while arguments:
            kind, argument = arguments.pop(0)
            if kind == "value":
                call.positional.append(self.value(argument))
            elif argument.lower() in switches:
                call.named[switches[argument.lower()]] = True
            elif argument.lower() in known:
                if not arguments or arguments[0][0] != "value":
                    raise _unbound("MissingArgument", call.name, argument)
                call.named[known[argument.lower()]] = self.value(arguments.pop(0)[1])
            else:
                raise _unbound("NamedParameterNotFound", call.name, argument)
        for position in signature.positions:
            if call.positional and position not in call.named:
                call.named[position] = call.positional.pop(0)
        if call.positional:
            raise _unbound("PositionalParameterNotFound", call.name, text(call.positional[0]))

    # -- expressions --------------------------------------------------------------------------

    def value(self, node: Node) -> Any:
        kind = node[0]
        if kind == "value":
            return node[1]
        if kind == "variable":
            return self.variable(node[1])
        if kind == "pipe":
            parts = node[1]
            alone = len(parts) == 1 and parts[0][0] not in ("command", "call")
            return self.value(parts[0]) if alone else _unwrapped(self.pipe(parts))
        if kind == "paren":
            return self.value(node[1][0])
        if kind == "array":
            return self.body(node[1])
        if kind == "list":
            return [self.value(one) for one in node[1]]
        if kind == "hash":
            return {key: self._pair(one) for key, one in node[1]}
        if kind == "block":
            return Block(node[1])
        return self._operation(node)

    def _pair(self, node: Node) -> Any:
        return self.value(node) if node[0] == "pipe" else _unwrapped(self.statement(node))

    def _operation(self, node: Node) -> Any:
        kind = node[0]
        if kind == "cast":
            return self.cast(node[1], self.value(node[2]))
        if kind == "unary":
            value = self.value(node[2])
            if node[1] == "-join":
                return "".join(text(one) for one in value)
            return not truth(value)
        if kind == "binary":
            return self._binary(node[1], node[2], node[3])
        if kind == "index":
            owner, key = self.value(node[1]), self.value(node[2])
            return owner[key]
        if kind == "member":
            return member(self.value(node[1]), node[2])
        if kind == "static":
            return member(self.type_of(node[1][1]), node[2])
        if kind == "invoke":
            return self._invoke(node)
        raise PsError("ParserError", "Unknown", f"not understood: {node}")

    def _invoke(self, node: Node) -> Any:
        where, owner, name = node[1]
        target = self.type_of(owner[1]) if where == "static" else self.value(owner)
        found, method = lookup(getattr(target, "methods", {}), name)
        if not found:
            raise PsError("InvalidOperation", "MethodNotFound", f"no method {name}")
        return method(*(self.value(one) for one in node[2]))

    def _binary(self, operator: str, left: Node, right: Node) -> Any:
        first = self.value(left)
        if operator == "-and":
            return truth(first) and truth(self.value(right))
        if operator == "-or":
            return truth(first) or truth(self.value(right))
        second = self.value(right)
        if operator in ("-like", "-notlike"):
            alike = fnmatch.fnmatchcase(text(first).lower(), text(second).lower())
            return alike is (operator == "-like")
        if operator in ("-eq", "-ne"):
            return same(first, second) is (operator == "-eq")
        if operator == "-f":
            return formatted(text(first), second if isinstance(second, list) else [second])
        if operator == "+":
            return text(first) + text(second) if isinstance(first, str) else first + second
        low, high = (second, first) if operator == "-gt" else (first, second)
        return (low or 0) < (high or 0)  # null counts as nought

    def type_of(self, name: str) -> Thing:
        found, known = lookup(self.types, name)
        if not found:
            raise PsError("InvalidOperation", "TypeNotFound", f"Unable to find type [{name}].")
        assert isinstance(known, Thing)
        return known

    def cast(self, name: str, value: Any) -> Any:
        lower = name.lower()
        if lower == "string":
            return text(value)
        if lower == "bool":
            return truth(value)
        if lower == "char":
            return Char(chr(value) if isinstance(value, int) else text(value))
        if lower == "int":
            if isinstance(value, Char):
                return ord(value)
            return value.number if isinstance(value, Named) else int(value or 0)
        found, convert = lookup(self.type_of(name).methods, "cast")
        if not found:
            raise PsError("InvalidArgument", "ConvertToFinalInvalidCastException", name)
        return convert(value)


def member(owner: Any, name: str) -> Any:
    """A property; of something that lacks it, null, as without strict mode."""
    if isinstance(owner, Thing):
        return lookup(owner.properties, name)[1]
    if isinstance(owner, dict):
        found, value = lookup(owner, name)
        return value if found else None
    if isinstance(owner, list):
        if name.lower() in ("count", "length"):
            return len(owner)
        return _unwrapped([member(one, name) for one in owner])
    return None


def _unwrapped(outputs: list[Any]) -> Any:
    if not outputs:
        return None
    return outputs[0] if len(outputs) == 1 else outputs


def _no_command(name: str) -> PsError:
    return PsError(
        "ObjectNotFound", "CommandNotFoundException", f"The term '{name}' is not recognized."
    )


def _unbound(error: str, cmdlet: str, argument: str) -> PsError:
    return PsError(
        "InvalidArgument", f"{error},{cmdlet}", f"A parameter cannot be found: '{argument}'."
    )
