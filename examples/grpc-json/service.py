"""The service of this example, in grpcio: `python examples/grpc-json/service.py 8101`."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILES = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "books.pb").read_bytes())
NAME = "example.books.Books"


def message_class(name: str) -> Any:
    """The class of a message of the service."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"example.books.{name}"))


_POOL = descriptor_pool.DescriptorPool()
for _file in FILES.file:
    _POOL.Add(_file)
Book = message_class("Book")


class Books:
    """What there is in memory."""

    def __init__(self) -> None:
        emma = Book(id=1, title="Emma", authors=["Jane Austen"])
        self.books: dict[int, Any] = {1: emma, 2: Book(id=2, title="Persuasion", authors=["Jane Austen"])}

    def get_book(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One book."""
        if request.id not in self.books:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no book {request.id}")
        return self.books[request.id]

    def list_books(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """All books, or those of an author."""
        yield from (book for book in self.books.values() if not request.author or request.author in book.authors)

    def put_book(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Keep a book."""
        self.books[request.id] = request
        return request


def start(port: int) -> tuple[grpc.Server, int]:
    """A server on loopback, and its port."""
    books = Books()
    kinds = {
        name: (message_class(name).FromString, Book.SerializeToString)
        for name in ("GetBookRequest", "ListBooksRequest", "Book")
    }
    handlers = {
        "GetBook": grpc.unary_unary_rpc_method_handler(books.get_book, *kinds["GetBookRequest"]),
        "ListBooks": grpc.unary_stream_rpc_method_handler(books.list_books, *kinds["ListBooksRequest"]),
        "PutBook": grpc.unary_unary_rpc_method_handler(books.put_book, *kinds["Book"]),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


if __name__ == "__main__":
    start(int(sys.argv[1]))[0].wait_for_termination()
