"""Processes compare what they were started with before they train."""

import socket
import threading
import time

import pytest

from experiments.train.meeting import NotMetError, meet


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meeting(guests, number=None, seconds=3.0):
    """What each of `guests`, pairs of an id and its terms, hears: None, or an error."""
    port, heard = free_port(), {}

    def come(place, me, terms):
        try:
            meet(f"localhost:{port}", number or len(guests), me, terms, seconds)
            heard[place] = None
        except Exception as error:
            heard[place] = error

    threads = [threading.Thread(target=come, args=(i, *guest)) for i, guest in enumerate(guests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [heard[i] for i in range(len(guests))]


def test_all_go_on_that_mean_the_same():
    assert meeting([(i, {"seed": 1}) for i in (2, 0, 1)]) == [None] * 3


@pytest.mark.parametrize("name", ["seed", "norm", "steps", "images"])
def test_different_settings_are_named_by_all(name):
    heard = meeting([(0, {name: 1, "same": 2}), (1, {name: 3, "same": 2})])
    for error in heard:
        assert error.code == 2 and "\n" not in str(error)
        assert f"({name} 1 on process 0, 3 on process 1)" in str(error)


def test_one_id_twice():
    heard = meeting([(0, {}), (1, {}), (1, {})])
    assert {error.code for error in heard} == {3}
    assert all("two processes were started with --process-id 1" in str(error) for error in heard)


def test_process_0_twice_or_a_port_in_use():
    with socket.create_server(("", 0)) as taken:
        where = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(NotMetError, match=r"cannot listen there.*another port"):
            meet(where, 2, 0, {}, 1.0)


@pytest.mark.parametrize(
    ("me", "message"), [(0, "process 1, 2 of 3 did not come"), (1, "process 0 of 3 was not there")]
)
def test_one_that_waits_alone_says_so(me, message):
    began = time.monotonic()
    (error,) = meeting([(me, {})], number=3, seconds=0.6)
    assert error.code == 3 and message in str(error)
    assert time.monotonic() - began < 5


def test_another_number_of_processes():
    port, heard = free_port(), []

    def come(me, number):
        try:
            meet(f"localhost:{port}", number, me, {}, 3.0)
        except Exception as error:
            heard.append(str(error))

    threads = [threading.Thread(target=come, args=args) for args in ((0, 2), (1, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(heard) == 2 and all("--num-processes 4, process 0 with 2" in e for e in heard)


def test_another_program_at_the_port_is_no_process():
    port, heard = free_port(), []

    def come(me):
        try:
            heard.append(meet(f"localhost:{port}", 2, me, {}, 5.0))
        except Exception as error:
            heard.append(error)

    host = threading.Thread(target=come, args=(0,))
    host.start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\n", b'{"id": 1}\n', b"[]\n"):
        for _ in range(50):
            try:
                with socket.create_connection(("localhost", port), timeout=5) as stranger:
                    stranger.sendall(noise)
                break
            except OSError:
                time.sleep(0.05)
    guest = threading.Thread(target=come, args=(1,))
    guest.start()
    for thread in (host, guest):
        thread.join(30)
    assert heard == [None, None]
