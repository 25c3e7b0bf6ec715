"""A parser for the part of PowerShell that the driver's scripts use.

Statements (assignment, if, try), pipelines of commands and expressions, script blocks,
hashtables, casts, static members, and the operators of `LEVELS`. Source: the PowerShell language
specification, chapters 2, 7 and 8. Nodes are tuples whose first part is their kind.
"""

from __future__ import annotations

import re
from typing import Any

from officegrid.testing.hyperv.values import PsError

Node = tuple[Any, ...]
LEVELS = (("-and", "-or"), ("-eq", "-ne", "-gt", "-lt", "-like", "-notlike"), ("+",), ("-f",))
_VARIABLE = re.compile(r"\$(\w+|_)")
_NUMBER = re.compile(r"\d+(?![\w.])")
_NAME = re.compile(r"[A-Za-z_]\w*")
_COMMAND = re.compile(r"[A-Za-z][\w.]*(-[A-Za-z]\w*)*")
_PARAMETER = re.compile(r"-([A-Za-z]\w*)")
_TYPE = re.compile(r"\[([A-Za-z][\w.]*)\]")
_BARE = re.compile(r"[^\s;|(){}'\",@$]+")


def parse(source: str) -> tuple[Node, ...]:
    """The statements of a script. Raises PsError (ParserError)."""
    parser = _Parser(source)
    return parser.statements("")


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    # -- reading ------------------------------------------------------------------------------

    def blank(self, also: str = "") -> None:
        while self.at < len(self.source) and self.source[self.at] in " \t\r\n" + also:
            self.at += 1

    def peek(self, token: str) -> bool:
        return self.source.startswith(token, self.at)

    def take(self, token: str) -> bool:
        self.blank()
        if self.peek(token):
            self.at += len(token)
            return True
        return False

    def need(self, token: str) -> None:
        if not self.take(token):
            raise self.wrong(f"Missing '{token}'")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.source, self.at)
        if found:
            self.at = found.end()
        return found

    def word(self, *words: str) -> str:
        """A keyword or an operator, if it stands here whole."""
        self.blank()
        for one in words:
            end = self.at + len(one)
            if self.source[self.at : end].lower() == one and not (
                one[-1].isalpha() and self.source[end : end + 1].isalnum()
            ):
                self.at = end
                return one
        return ""

    def wrong(self, what: str) -> PsError:
        near = self.source[self.at : self.at + 40]
        return PsError("ParserError", "ParserError", f"{what} at char {self.at}: {near}")

    # -- statements ---------------------------------------------------------------------------

    def statements(self, closing: str) -> tuple[Node, ...]:
        found: list[Node] = []
        while True:
            self.blank(";")
            if self.at >= len(self.source):
                if closing:
                    raise self.wrong(f"Missing closing '{closing}'")
                return tuple(found)
            if closing and self.take(closing):
                return tuple(found)
            found.append(self.statement())
            self.blank()
            ended = self.at >= len(self.source) or self.source[self.at] == ";"
            if not ended and not (closing and self.peek(closing)) and found[-1][0] == "pipe":
                raise self.wrong("Unexpected token")

    def statement(self) -> Node:
        if self.word("if"):
            return self.if_statement()
        if self.word("try"):
            body = self.block()
            if not self.word("catch"):
                raise self.wrong("Missing catch")
            return "try", body, self.block()
        start = self.at
        static = _TYPE.match(self.source, start)
        if _VARIABLE.match(self.source, start) or (
            static and self.source.startswith("::", static.end())
        ):
            target = self.postfix(self.primary())
            self.blank()
            if self.peek("="):
                self.at += 1
                return "set", target, self.statement()
            self.at = start
        return self.pipeline()

    def if_statement(self) -> Node:
        self.need("(")
        condition = self.pipeline()
        self.need(")")
        body = self.block()
        otherwise: tuple[Node, ...] = ()
        if self.word("elseif"):
            return "if", condition, body, (self.if_statement(),)
        if self.word("else"):
            otherwise = self.block()
        return "if", condition, body, otherwise

    def block(self) -> tuple[Node, ...]:
        self.need("{")
        return self.statements("}")

    def pipeline(self, commas: bool = True) -> Node:
        parts = [self.element()]
        while commas and parts[0][0] not in ("call", "command") and self.take(","):
            parts[0] = (
                "list",
                (*parts[0][1], self.element())
                if parts[0][0] == "list"
                else (parts[0], self.element()),
            )
        while self.take("|"):
            parts.append(self.element())
        return "pipe", tuple(parts)

    def element(self) -> Node:
        if self.take("&"):
            self.blank()
            return "call", self.primary(), self.arguments()
        self.blank()
        if self.source[self.at : self.at + 1].isalpha():
            found = self.match(_COMMAND)
            assert found is not None
            return "command", found[0], self.arguments()
        return self.expression()

    def arguments(self) -> tuple[Node, ...]:
        """("name", X) for -X, ("value", node) for what stands beside."""
        found: list[Node] = []
        while True:
            self.blank()
            rest = self.source[self.at : self.at + 1]
            if not rest or rest in ";|)}":
                return tuple(found)
            if rest == "-" and (name := self.match(_PARAMETER)):
                found.append(("name", name[1]))
            elif rest in "'$(@{":
                found.append(("value", self.postfix(self.primary())))
            elif number := self.match(_NUMBER):
                found.append(("value", ("value", int(number[0]))))
            elif bare := self.match(_BARE):
                found.append(("value", ("value", bare[0])))
            else:
                raise self.wrong("Unexpected token")

    # -- expressions --------------------------------------------------------------------------

    def expression(self, level: int = 0) -> Node:
        if level == len(LEVELS):
            return self.unary()
        left = self.expression(level + 1)
        while operator := self.word(*LEVELS[level]):
            left = ("binary", operator, left, self.expression(level + 1))
        return left

    def unary(self) -> Node:
        self.blank()
        if operator := self.word("-join", "-not", "!"):
            return "unary", operator, self.unary()
        start = self.at
        if found := self.match(_TYPE):
            if self.peek("::"):
                self.at = start
                return self.postfix(self.primary())
            return "cast", found[1], self.unary()
        return self.postfix(self.primary())

    def primary(self) -> Node:
        self.blank()
        if self.peek("'"):
            return "value", self.quoted()
        if self.peek("@("):
            self.at += 2
            return "array", self.statements(")")
        if self.peek("@{"):
            self.at += 2
            return self.hashtable()
        if self.peek("("):
            self.at += 1
            return "paren", self.list_until(")")
        if self.peek("{"):
            return "block", self.block()
        if found := self.match(_VARIABLE):
            return "variable", found[1]
        if found := self.match(_NUMBER):
            return "value", int(found[0])
        if found := self.match(_TYPE):
            return "type", found[1]
        raise self.wrong("Unexpected token")

    def list_until(self, closing: str) -> tuple[Node, ...]:
        found: list[Node] = []
        while not self.take(closing):
            found.append(self.pipeline(commas=False))
            if not self.take(","):
                self.need(closing)
                break
        return tuple(found)

    def quoted(self) -> str:
        result = ""
        self.at += 1
        while True:
            end = self.source.find("'", self.at)
            if end < 0:
                raise self.wrong("The string is missing the terminator")
            result += self.source[self.at : end]
            self.at = end + 1
            if not self.peek("'"):
                return result
            result += "'"
            self.at += 1

    def hashtable(self) -> Node:
        pairs: list[tuple[str, Node]] = []
        while True:
            self.blank(";")
            if self.take("}"):
                return "hash", tuple(pairs)
            key = self.match(_NAME)
            if key is None:
                raise self.wrong("Missing key in hash literal")
            self.need("=")
            pairs.append((key[0], self.statement()))

    def postfix(self, node: Node) -> Node:
        while True:
            if self.peek("::"):
                self.at += 2
                node = ("static", node, self.member())
            elif self.peek(".") and _NAME.match(self.source, self.at + 1):
                self.at += 1
                node = ("member", node, self.member())
            elif self.peek("[") and node[0] in ("variable", "member", "index"):
                self.at += 1
                node = ("index", node, self.expression())
                self.need("]")
            else:
                return node
            if self.peek("(") and node[0] in ("static", "member"):
                self.at += 1
                node = ("invoke", node, self.list_until(")"))

    def member(self) -> str:
        found = self.match(_NAME)
        if found is None:
            raise self.wrong("Missing property name")
        return found[0]
