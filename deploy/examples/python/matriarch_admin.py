#!/usr/bin/env python3
"""Asks a manager's admin API by gRPC, without generated code: what there is to ask is asked as well (reflection).

    pip install grpcio grpcio-reflection googleapis-common-protos
    matriarch_admin.py HOST:PORT status
    matriarch_admin.py HOST:PORT events [SECONDS]
    matriarch_admin.py HOST:PORT switchover [CANDIDATE]
    matriarch_admin.py HOST:PORT restart MEMBER

Any manager will do. What is printed is JSON, one document on a line. docs/api.md says what it means.
Exit codes: 0 done, 1 refused or not known to be done, 2 wrong use.
"""

import json
import sys
import time
import uuid

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Longer than a manager waits for a leader (2.5 s) and for its answer (3 s).
DEADLINE_S = 8
# An operation that has not begun is told by a status, which has details for programs.
BY_STATUS = (("matriarch-errors", "status"),)


class Admin:
    """The service matriarch.v1.Admin as a manager describes it: `admin.call("Status")`."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = pool.FindServiceByName("matriarch.v1.Admin")

    def call(self, method, within=DEADLINE_S, **fields):
        """A reply, or for a method that streams an iterator of replies, for so many seconds. Raises grpc.RpcError."""
        described = self.service.methods_by_name[method]
        request = message_factory.GetMessageClass(described.input_type)(**fields)
        reply = message_factory.GetMessageClass(described.output_type)
        make = self.channel.unary_stream if described.server_streaming else self.channel.unary_unary
        ask = make(
            f"/{self.service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return ask(request, timeout=within, metadata=BY_STATUS)

    def begin(self, method, **fields):
        """Begins an operation. It is asked again under the same id as long as nobody knows what became of it: it begins once."""
        fields["request_id"] = str(uuid.uuid4())
        for pause in (0.5, 1, 2, None):
            try:
                return self.call(method, **fields), fields
            except grpc.RpcError as error:
                unknown = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not unknown or pause is None:
                    raise
                time.sleep(pause)


def why(error):
    """The status with what google.rpc.ErrorInfo says of it."""
    told = {"code": error.code().name, "message": error.details()}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    told.update(reason=info.reason, domain=info.domain, metadata=dict(info.metadata))
    return told


def show(message):
    print(json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True)), flush=True)


def events(admin, seconds):
    """What was decided and what is decided from now on, for so long."""
    until = time.monotonic() + seconds
    # Its deadline ends it, by the word of whichever side looks at the clock first.
    over = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    try:
        for event in admin.call("Events", within=seconds, follow=True):
            show(event)
    except grpc.RpcError as error:
        if error.code() not in over or time.monotonic() < until - 1:
            raise


def operate(admin, method, **fields):
    reply, asked = admin.begin(method, **fields)
    show(reply)
    # Asked once more under the same id: the same operation, and no second one.
    again = admin.call(method, **asked)
    assert again.id == reply.id, f"operation {again.id} is not {reply.id}"
    while True:
        status = admin.call("Status")
        if status.last_operation.id == reply.id:
            show(status.last_operation)
            return 0 if status.last_operation.succeeded else 1
        time.sleep(0.2)


def main(arguments):
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    (address, command), rest = arguments[:2], arguments[2:]
    try:
        admin = Admin(address)
        if command == "status":
            show(admin.call("Status"))
        elif command == "events":
            events(admin, float(rest[0]) if rest else 10)
        elif command == "switchover":
            return operate(admin, "Switchover", candidate=rest[0] if rest else "")
        elif command == "restart" and rest:
            return operate(admin, "Restart", member=rest[0])
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except grpc.RpcError as error:
        print(json.dumps({"error": why(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
