"""Whatever happens in whatever order: the client keeps to its table of states, and finds the truth."""

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.isns.attributes import Scn
from iscsifs.isns.client import Close
from iscsifs.isns.pdu import Function
from iscsifs.isns.states import TRANSITIONS, Happening, State
from iscsifs.limits import ISNS_POLL_INTERVAL, ISNS_REFUSED_PAUSE
from support.memory_isns import ME, Server, Talk, attributes, esi, pdu, scn

NAMES = [f"iqn.2001-04.com.example:{letter}" for letter in "abc"]
FUNCTIONS = [Function(number) for number in range(1, 7)]

happenings = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.5, 1.0, 5.0, 70.0, 700.0])),
    st.tuples(st.just("add"), st.sampled_from(NAMES)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    st.tuples(st.just("tell"), st.sampled_from([ME, *NAMES])),
    st.tuples(st.just("status"), st.tuples(st.sampled_from(FUNCTIONS), st.integers(1, 24))),
    st.tuples(st.sampled_from(["inquire", "forget", "lose", "silence", "junk"]), st.none()),
)


class Life:
    """A client and its server, and what happens to them."""

    def __init__(self) -> None:
        self.talk = Talk(Server(granted=attributes((6, 300)))).connect()

    def state(self) -> State:
        return self.talk.client.state

    def happen(self, what: str, how: object) -> None:
        talk = self.talk
        if what == "wait":
            talk.wait(float(str(how)))
        elif what == "add":
            talk.add(str(how))
        elif what == "remove" and how in talk.server.targets:
            talk.remove(str(how))
        elif what == "tell":
            talk.tell(scn((Scn.UPDATED, str(how))))
        elif what == "inquire":
            talk.tell(esi())
        elif what == "status" and isinstance(how, tuple):
            talk.server.statuses[how[0]].append(how[1])
        elif what == "forget":
            talk.server.forget()
        elif what == "silence":
            talk.server.is_silent = not talk.server.is_silent
        elif what == "junk" and talk.client.state is not State.AWAY:
            talk.client.receive(pdu(b"junk"), talk.now)
            talk.settle()
        elif what == "lose":
            self.reconnect()
        if any(isinstance(event, Close) for event in talk.events):
            self.reconnect()

    def reconnect(self) -> None:
        talk = self.talk
        talk.events = [event for event in talk.events if not isinstance(event, Close)]
        talk.disconnect()
        talk.now += talk.client.reconnect_pause()
        talk.connect()

    def calm_down(self) -> None:
        """Let the server behave from now on, and all pauses pass."""
        self.talk.server.is_silent = False
        self.talk.server.statuses.clear()
        self.reconnect()
        self.talk.wait(ISNS_REFUSED_PAUSE + 2 * ISNS_POLL_INTERVAL)


@given(st.lists(happenings, max_size=25))
def test_in_the_end_the_client_knows_what_the_server_knows(story: list[tuple[str, object]]) -> None:
    life = Life()
    for what, how in story:
        life.happen(what, how)
    life.calm_down()
    talk = life.talk
    assert life.state() is State.REGISTERED
    assert talk.server.is_registered
    assert set(talk.names) == set(talk.server.targets)
    talk.client.leave(talk.now)
    talk.settle()
    assert life.state() is State.LEFT
    assert not talk.server.is_registered


@given(st.lists(happenings, max_size=25))
def test_the_end_may_come_at_any_time(story: list[tuple[str, object]]) -> None:
    life = Life()
    for what, how in story:
        life.happen(what, how)
    life.talk.client.leave(life.talk.now)
    life.talk.settle()
    if life.talk.client.state is State.LEAVING:
        assert life.talk.server.is_silent
    life.talk.client.disconnected(life.talk.now)
    assert life.talk.client.state is State.LEFT


def test_every_state_is_left_in_the_end() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.LEFT}
    assert {happening for _, happening in TRANSITIONS} == set(Happening)
    for state in set(State) - {State.LEFT, State.LEAVING}:
        assert TRANSITIONS[state, Happening.STOPPED] in (State.LEAVING, State.LEFT)
