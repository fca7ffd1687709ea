"""The life of a stream (RFC 9113 section 5.1) as tables: what each frame means in each state, and what an end does.

`reserved` does not occur: nobody here pushes, and a PUSH_PROMISE is a connection error wherever it comes (section 8.4).
"""

from __future__ import annotations

from typing import Final

from meshproxy.codec.http2.constants import (
    CONTINUATION,
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    WINDOW_UPDATE,
)

# States, as the endpoint sees them whose stream it is.
IDLE: Final = 0
OPEN: Final = 1
HALF_CLOSED_LOCAL: Final = 2  # we have sent our end
HALF_CLOSED_REMOTE: Final = 3  # the peer has sent its end
CLOSED: Final = 4
FORGOTTEN: Final = 5  # closed by our own RST_STREAM: what the peer sent before it heard of that may still come

# What a received frame is.
TAKEN: Final = 0
IGNORED: Final = 1
STREAM_ERROR: Final = 2  # of the code STREAM_CLOSED
CONNECTION_CLOSED_ERROR: Final = 3  # a connection error of the code STREAM_CLOSED
CONNECTION_PROTOCOL_ERROR: Final = 4  # … of the code PROTOCOL_ERROR

_FRAMES: Final = (DATA, HEADERS, PRIORITY, RST_STREAM, WINDOW_UPDATE, CONTINUATION)


def _row(default: int, **meanings: int) -> tuple[int, ...]:
    """The meanings of the frame types 0 to 9 in one state."""
    numbers = {"data": DATA, "headers": HEADERS, "rst_stream": RST_STREAM, "window_update": WINDOW_UPDATE}
    row = [default if number in _FRAMES else TAKEN for number in range(10)]
    row[PRIORITY] = TAKEN  # in any state
    for name, meaning in meanings.items():
        row[numbers[name]] = meaning
    return tuple(row)


# RECEIVED[state][frame type]. A CONTINUATION is part of the HEADERS before it, and never comes here.
RECEIVED: Final[tuple[tuple[int, ...], ...]] = (
    _row(CONNECTION_PROTOCOL_ERROR, headers=TAKEN),
    _row(TAKEN),
    _row(TAKEN),
    _row(STREAM_ERROR, rst_stream=TAKEN, window_update=TAKEN),
    _row(CONNECTION_CLOSED_ERROR, rst_stream=IGNORED, window_update=IGNORED),
    _row(IGNORED),
)

# The state behind an END_STREAM that was received, or sent.
END_RECEIVED: Final[tuple[int, ...]] = (CLOSED, HALF_CLOSED_REMOTE, CLOSED, HALF_CLOSED_REMOTE, CLOSED, FORGOTTEN)
END_SENT: Final[tuple[int, ...]] = (CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_LOCAL, CLOSED, CLOSED, FORGOTTEN)
