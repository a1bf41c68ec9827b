"""Objects as rules, their members in any order.

Behind the opening brace stands a member, behind each member either the closing brace or a comma and another one. The
parameter has a bit for every name. A name may come only while its bit is clear. The brace may close only when the
presence formula holds for the bits. Keys without a bit of their own fall into classes, by what applies to them.
Nothing looks ahead behind a comma, so a comma is offered only where some member may follow. Likewise, a member may come
only if the formula can hold afterwards.
In the order of the schema, a name may come only before all names behind it.
A watch looks after equal keys where they would count, and after required names beyond the bits.
Knows nothing about: keywords, other shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from maskd.errors import GrammarTooLargeError
from maskd.grammar import PropertyOrder
from maskd.json_schema.compiler.emptiness import Term
from maskd.json_schema.compiler.keys import Key, Keys
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.presence import (
    And,
    AtLeast,
    Exists,
    Formula,
    Has,
    Leaf,
    Not,
    Or,
    all_of,
    conjuncts,
    holds_without_members,
    leaves,
)
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.rules import PARAMETER_BITS, Alternative, BitField, Bits, all_hold, any_holds
from maskd.json_schema.compiler.symbols import Symbols
from maskd.json_schema.compiler.values import ObjectShape
from maskd.json_schema.compiler.watch import ObjectNotes, WatchedMembers, WatchNotes
from maskd.regular.amounts import has_texts, is_open_ended
from maskd.regular.expression import choice

__all__ = ["ObjectRules"]

_MOST_OPTIONS = 64
_MOST_CONDITIONS = 256


class ObjectRules:
    """Writes the rules of object shapes."""

    def __init__(self, reader: SchemaReader, symbols: Symbols, notes: WatchNotes, order: PropertyOrder) -> None:
        self._reader, self._symbols, self._notes, self._order = reader, symbols, notes, order

    def write(self, name: str, shape: ObjectShape) -> None:
        """Adds the rule ``name`` for ``shape``, which some object has."""
        self._notes.objects[shape] = ObjectNotes()
        _Object(self._reader, self._symbols, self._notes.objects[shape], shape, self._order).write(name)


class _Object:
    """One object and the bits of its parameter."""

    def __init__(
        self, reader: SchemaReader, symbols: Symbols, notes: ObjectNotes, shape: ObjectShape, order: PropertyOrder
    ) -> None:
        self._reader, self._symbols, self._rules, self._notes = reader, symbols, symbols.rules, notes
        self._nodes, self._emptiness = reader.nodes, reader.emptiness
        self._is_ordered = order == "schema"
        presence, terms = self._emptiness.presence(shape)
        if terms is None:
            raise GrammarTooLargeError(
                "an object's required, dependent and counted members make a formula that is too large; "
                "ask for fewer of them, or for fewer alternatives",
                limit="presence_terms",
            )
        self._presence, self._terms = presence, terms
        self._may_be_empty = holds_without_members(presence)
        keys = Keys(reader, shape, presence)
        self._events, self._named, self._classes = keys.events, keys.named, keys.classes
        self._assign(list(dict.fromkeys(leaves(presence))))

    # -- bits ------------------------------------------------------------------------------------------------------

    def _assign(self, found: Sequence[Leaf]) -> None:
        """Gives every event, the count and every name its bits. Names that are required come first: one condition asks
        for all of them. In the order of the schema, names stand in that order instead."""
        asked = {leaf.name for leaf in found if isinstance(leaf, Has)}
        required = [leaf.name for leaf in conjuncts(self._presence) if isinstance(leaf, Has)]
        self._notes.required = frozenset(required)
        most = max((leaf.count for leaf in found if isinstance(leaf, AtLeast)), default=0)
        names = [key.name for key in self._named if key.name is not None]
        if not self._is_ordered:
            names.sort(key=lambda name: (name not in required, name not in asked))
        reserved = len(self._events) + most.bit_length() + self._is_ordered
        room = PARAMETER_BITS - 1 - reserved
        watched = self._left_to_watch(required) if len(asked) > room + 1 and not self._is_ordered else frozenset()
        if watched:
            required, asked, room = [], asked - watched, 0
        self._required = [name for name in names if name in required]
        bits = Bits()
        self._bit: dict[str, int] = {}
        for name in names:
            if len(self._bit) < room or name in asked:
                self._bit[name] = bits.bit()
        self._behind_named = bits.bit() if self._is_ordered and self._classes else None
        self._event_bits = [bits.bit() for _ in self._events]
        self._count: BitField | None = bits.field(most) if most else None
        if bits.used > PARAMETER_BITS:
            raise GrammarTooLargeError(
                f"an object keeps track of {bits.used} facts about its members, and {PARAMETER_BITS} can be; "
                "ask for fewer required, dependent or counted members",
                keyword="required",
                limit="object_bits",
                value=PARAMETER_BITS,
            )
        self._watch(watched)

    def _left_to_watch(self, required: Sequence[str]) -> frozenset[str]:
        """Takes required names out of the presence formula that matter nowhere else in it, and returns them."""
        if any(isinstance(leaf, AtLeast) and not is_so for term in self._terms for leaf, is_so in term):
            return frozenset()  # whether there is room for the missing ones depends on their bits
        parts = [part for part in conjuncts(self._presence) if not isinstance(part, Has)]
        left = frozenset(required).difference(
            leaf.name for part in parts for leaf in leaves(part) if isinstance(leaf, Has)
        )
        self._presence = all_of(
            part for part in conjuncts(self._presence) if not isinstance(part, Has) or part.name not in left
        )
        self._terms = [
            tuple((leaf, is_so) for leaf, is_so in term if not isinstance(leaf, Has) or leaf.name not in left)
            for term in self._terms
        ]
        return left

    def _watch(self, required: frozenset[str]) -> None:
        """Notes what a watch must look after: ``required`` names, and equal keys where they matter."""
        unmarked = frozenset(key.name for key in self._named if key.name is not None and key.name not in self._bit)
        endless = [key for key in self._classes if is_open_ended(key.keys)]
        self._notes.is_endless = any(self._guard(key) == "" for key in endless)
        repeated = [key for key in (*self._named, *self._classes) if key.name is None or key.name in unmarked]
        if not required and not any(self._count is not None or key.events for key in repeated):
            return
        if not required and not self._can_differ(endless):
            effect = "members of equal keys count as several, and an earlier one may decide"
            self._reader.note("properties", effect)
            return
        free = unmarked if required and self._count is None else frozenset()
        self._notes.members = WatchedMembers(
            required,
            free,
            only_free=bool(free) and not self._classes and not self._bit,
            endless=not unmarked and len(endless) == len(self._classes),
        )

    def _can_differ(self, endless: Sequence[Key]) -> bool:
        """Says whether members of different keys are enough, as far as it is known."""
        least = max(
            (leaf.count for term in self._terms for leaf, is_so in term if is_so and isinstance(leaf, AtLeast)),
            default=0,
        )
        if least and not endless and not has_texts(choice(*(key.keys for key in self._classes)), least):
            return False
        return all(
            any(
                event in key.events and not self._emptiness.node(self._nodes.all_of((key.node, event.node)))
                for key in endless
            )
            for event in self._events
            if any(event in key.events for key in self._classes)
        )

    # -- rules -----------------------------------------------------------------------------------------------------

    def write(self, name: str) -> None:
        """Adds the rule ``name``."""
        rules, marks = self._rules, self._symbols.punctuation
        if not self._bit and not self._events and self._count is None:
            self._write_free(name)
            return
        member, following = rules.fresh("m"), rules.fresh("n")
        free = dict.fromkeys(key for key in (*self._named, *self._classes) if self._is_free(key))
        bound = [
            alternative
            for key in (*self._named, *self._classes)
            if key not in free
            for alternative in self._alternatives(key, following)
        ]
        found = [Alternative(marks.no_members)] if self._may_be_empty else []
        run: str | None = None
        if free:
            run = rules.add(rules.fresh("x"), [Alternative(*self._plain(key)) for key in free])
            found.append(Alternative(f"{marks.object_start} {run} {following}::0", (run, following)))
        if bound:
            rules.add(member, bound, parametric=True)
            found.append(Alternative(f"{marks.object_start} {member}::0", (member,)))
        more = f"({marks.comma} {run})* " if run else ""
        ends = [Alternative(more + marks.object_end, (), self._condition(self._presence))]
        if bound:
            conditions = [alternative.condition for alternative in bound]
            if set(conditions) == {f"bit_clear({bit})" for bit in range(len(self._bit))}:
                conditions = [f"not(is_ones([0:{len(self._bit)}]))"]
            ends.append(Alternative(f"{more}{marks.comma} {member}::_", (member,), any_holds(conditions)))
        rules.add(following, ends, parametric=True)
        rules.add(name, found)

    def _write_free(self, name: str) -> None:
        """An object whose members do not concern each other."""
        rules, marks = self._rules, self._symbols.punctuation
        found = [Alternative(marks.no_members)] if self._may_be_empty else []
        if keys := (*self._named, *self._classes):
            member = rules.add(rules.fresh("m"), [Alternative(*self._plain(key)) for key in keys])
            text = f"{marks.object_start} {member} ({marks.comma} {member})* {marks.object_end}"
            found.append(Alternative(text, (member,)))
        rules.add(name, found)

    def _is_free(self, key: Key) -> bool:
        """Says whether members of ``key`` may come at any time, and change nothing."""
        return (
            not key.events
            and self._count is None
            and not self._is_ordered
            and self._bit_of(key) is None
            and self._guard(key) == ""
        )

    def _bit_of(self, key: Key) -> int | None:
        return self._bit.get(key.name) if key.name is not None else None

    def _with_events(self, key: Key, events: Iterable[Exists]) -> Node:
        """Returns what the value of a member of ``key`` satisfies that makes ``events`` true."""
        return self._nodes.all_of((key.node, *(event.node for event in events)))

    def _plain(self, key: Key, node: Node | None = None) -> tuple[str, tuple[str, ...]]:
        node = key.node if node is None else node
        if key.name is None:
            self._notes.classes.setdefault(key.keys, set()).add(node)
        else:
            self._notes.names.setdefault(key.name, set()).add(node)
        rule = self._symbols.rule(node)
        return f"{self._symbols.key(key.keys)} {self._symbols.punctuation.colon} {rule}", (rule,)

    def _alternatives(self, key: Key, following: str) -> Iterator[Alternative]:
        """Yields ways to write a member of ``key``: one for each set of events that it makes true."""
        bit = self._bit_of(key)
        cases = [(self._nodes.anything, event.node) for event in key.events]
        for holds, node in self._emptiness.splits(key.node, cases):
            true = list(itertools.compress(key.events, holds))
            guard = self._guard(key, true)
            if guard is None:
                continue
            symbols, (rule,) = self._plain(key, node)
            mask = sum(1 << self._event_bits[self._events.index(event)] for event in true)
            conditions = []
            if bit is not None:
                mask |= 1 << bit
                conditions.append(self._is_next(bit))
            elif self._behind_named is not None:
                mask |= 1 << self._behind_named
            changes = [] if not mask else [f"bit_or(0x{mask:x})"]
            if self._count is not None:
                changes.append(self._count.counted())
            yield self._rules.changed(symbols, rule, following, changes, all_hold((*conditions, guard)))

    def _is_next(self, bit: int) -> str:
        """Returns when the name of ``bit`` may come: never twice, and in order not behind a later one."""
        if not self._is_ordered:
            return f"bit_clear({bit})"
        last = len(self._bit) + (self._behind_named is not None)
        return f"le([{bit}:{last}],0)"

    # -- the formula -----------------------------------------------------------------------------------------------

    def _condition(self, formula: Formula) -> str:
        """Returns ``formula`` as a condition on the bits."""
        match formula:
            case Has(name=name):
                return f"bit_set({self._bit[name]})"
            case Exists():
                return f"bit_set({self._event_bits[self._events.index(formula)]})"
            case AtLeast(count=count):
                assert self._count is not None
                return self._count.at_least(count)
            case Not(inner=inner):
                return f"not({self._condition(inner)})"
            case Or(parts=parts):
                return any_holds(map(self._condition, parts))
        assert isinstance(formula, And)
        first = [self._bit[name] for name in self._required]
        if len(first) > 1 and first == list(range(len(first))):
            rest = [part for part in formula.parts if not isinstance(part, Has)]
            return all_hold((f"is_ones([0:{len(first)}])", *map(self._condition, rest)))
        return all_hold(map(self._condition, formula.parts))

    def _guard(self, key: Key, true: Sequence[Exists] = ()) -> str | None:
        """Returns when the formula can still hold behind a member of ``key`` that makes ``true`` true; None = never.

        What is there cannot be taken back. So a term is lost as soon as something is there that it forbids. It is also
        lost when its missing names and events have no member left, or no room under its upper bound.
        """
        found = []
        for term in self._terms:
            conditions = self._room(term, key, true)
            if conditions is not None:
                found.append(all_hold(conditions))
        return any_holds(found) if found else None

    def _room(self, term: Term, key: Key, true: Sequence[Exists]) -> list[str] | None:
        needed = [leaf.name for leaf, is_so in term if is_so and isinstance(leaf, Has) and leaf.name != key.name]
        absent = {leaf.name for leaf, is_so in term if not is_so and isinstance(leaf, Has)}
        if key.name in absent:
            return None
        conditions = [f"bit_clear({self._bit[name]})" for name in absent if name in self._bit]
        most = min((leaf.count - 1 for leaf, is_so in term if isinstance(leaf, AtLeast) and not is_so), default=None)
        if self._is_ordered and key.name is not None and key.name in self._bit:
            late = [name for name in needed if name in self._bit and self._bit[name] < self._bit[key.name]]
            conditions += [f"bit_set({self._bit[name]})" for name in late]
        elif self._is_ordered and key.name is None:
            conditions += [f"bit_set({self._bit[name]})" for name in needed]
        least = max((leaf.count for leaf, is_so in term if isinstance(leaf, AtLeast) and is_so), default=0)
        events = [leaf for leaf, is_so in term if is_so and isinstance(leaf, Exists) and leaf not in true]
        is_counted = self._is_ordered and least > 1
        further: list[Key] = []
        if events or is_counted:
            keys = (*self._named, *self._classes)
            further = [one for one in keys if one.name not in absent and self._may_follow(one, key)]
        if is_counted and all(self._bit_of(one) is not None for one in further):
            assert self._count is not None
            conditions.append(self._count.at_least(least - 1 - len(further)) if least - 1 > len(further) else "")
        conditions.append(self._room_for(events, needed, further, most))
        return None if "never" in conditions else conditions

    def _may_follow(self, key: Key, before: Key) -> bool:
        """Says whether a member of ``key`` may come behind one of ``before``, if there was none of that name."""
        bit, last = self._bit_of(key), self._bit_of(before)
        if bit is None:
            return True
        return key.name != before.name and (not self._is_ordered or (last is not None and last < bit))

    def _room_for(
        self, events: Sequence[Exists], needed: Sequence[str], further: Sequence[Key], most: int | None
    ) -> str:
        """Returns when ``needed`` and the missing ones of ``events`` have members among ``further``, and room."""
        if most is None:  # each event may have a member of its own
            free = {
                event
                for key in further
                if self._bit_of(key) is None
                for event in key.events
                if self._can(key, (event,))
            }
            events = [event for event in events if event not in free]
        found = []
        for missing in itertools.chain.from_iterable(
            itertools.combinations(events, length) for length in range(len(events) + 1)
        ):
            there = [self._condition(event) for event in events if event not in missing]
            for way in self._ways(missing, further, needed):
                names = {bit: key.name for key in way if (bit := self._bit_of(key)) is not None}
                room = ""
                if most is not None:
                    assert self._count is not None
                    further_members = len(way) - sum(name in needed for name in names.values())
                    room = self._room_under(self._count, most - further_members, needed)
                if room != "never":
                    found.append(all_hold((*there, *map(self._is_next, sorted(names)), room)))
        if len(found) > _MOST_CONDITIONS:
            raise GrammarTooLargeError(
                "what an object's members must satisfy somewhere makes a condition that is too large; "
                "write fewer negations, or leave maxProperties out",
                limit="presence_terms",
            )
        return any_holds(found) if found else "never"

    def _can(self, key: Key, events: Sequence[Exists]) -> bool:
        return set(events) <= set(key.events) and not self._emptiness.node(self._with_events(key, events))

    def _ways(self, events: Sequence[Exists], keys: Sequence[Key], needed: Sequence[str]) -> Iterator[list[Key]]:
        """Yields the members that together make ``events`` true, each of them at least one of these."""
        if not events:
            yield []
            return
        first, others = events[0], events[1:]
        for holds in itertools.product((False, True), repeat=len(others)):
            group = (first, *itertools.compress(others, holds))
            able = [key for key in keys if self._can(key, group)]
            if any(self._bit_of(key) is None for key in able):  # no need to take a name that may come but need not
                unnamed = next(key for key in able if self._bit_of(key) is None)
                able = [unnamed, *(key for key in able if key.name in needed)]
            rest = [event for event in others if event not in group]
            for key in able:
                left = keys if self._bit_of(key) is None else [other for other in keys if other is not key]
                yield from ([key, *way] for way in self._ways(rest, left, needed))

    def _room_under(self, count: BitField, most: int, needed: Sequence[str]) -> str:
        """Returns when one more member leaves room for those of ``needed`` that are not there yet, under ``most``."""
        first = sorted(self._bit[name] for name in needed)
        if not needed:
            return count.below(most) if most > 0 else "never"
        if first == list(range(len(first))):
            # So many are there at least, so few are missing at most.
            field = BitField(0, len(first))
            options = [
                f"and(bit_count_ge({field},{len(first) - missing}),{count.below(most - missing)})"
                for missing in range(len(first) + 1)
                if most > missing
            ]
            return any_holds(options) if options else "never"
        options = []
        for missing in range(len(first) + 1):
            if most > missing:
                for there in itertools.combinations(first, len(first) - missing):
                    options.append(all_hold([*(f"bit_set({bit})" for bit in there), count.below(most - missing)]))
                    if len(options) > _MOST_OPTIONS:
                        raise GrammarTooLargeError(
                            "an object's maxProperties and required members make a condition that is too large; "
                            "leave maxProperties out",
                            keyword="maxProperties",
                            limit="presence_terms",
                        )
        return any_holds(options) if options else "never"
