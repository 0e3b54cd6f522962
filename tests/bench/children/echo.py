"""A bare pyzmq ROUTER that answers every message with the same frames: the least that a server does.

Arguments: address, and the reply's frames in hexadecimal.
"""

import sys

import zmq

address, *frames = sys.argv[1:]
reply = [bytes.fromhex(frame) for frame in frames]
router = zmq.Context.instance().socket(zmq.ROUTER)
router.setsockopt(zmq.SNDHWM, 0)
router.setsockopt(zmq.RCVHWM, 0)
router.bind(address)
while True:
    peer, *_ = router.recv_multipart()
    router.send_multipart([peer, *reply])
