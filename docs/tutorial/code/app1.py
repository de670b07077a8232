"""A list of tasks: a page, and what it reads and writes."""

import json
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).with_name("page1.html")
SCHEMA = """
create table if not exists task (
    id integer primary key autoincrement,
    title text not null,
    done integer not null default 0,
    version integer not null default 1  -- rises with every change
)"""


def connect():
    db = sqlite3.connect("tasks.db", isolation_level=None)
    db.row_factory = sqlite3.Row
    return db


def as_row(found):
    return {
        "id": found["id"],
        "title": found["title"],
        "done": bool(found["done"]),
        "version": found["version"],
    }


def add(db, title):
    db.execute("insert into task (title) values (?)", [title])


TOGGLE = "update task set done = not done, version = version + 1 where id = ?"


def toggle(db, key):
    db.execute(TOGGLE, [key])


def remove(db, key):
    db.execute("delete from task where id = ?", [key])


def change(what, *arguments):
    with closing(connect()) as db, db:  # commits, or rolls back
        db.execute("begin immediate")
        what(db, *arguments)


def read_tasks():
    with closing(connect()) as db:
        found = db.execute("select * from task order by id")
        rows = [as_row(row) for row in found]
    return {"rows": rows}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            self.answer("text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path == "/tasks":
            tasks = json.dumps(read_tasks()).encode()
            self.answer("application/json", tasks)
        else:
            self.send_error(404)

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        match json.loads(self.rfile.read(length)):
            case {"add": title}:
                change(add, title)
            case {"toggle": key}:
                change(toggle, key)
            case {"remove": key}:
                change(remove, key)
        self.answer("application/json", b"null")

    def answer(self, content_type, body):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    with closing(connect()) as db:
        db.execute(SCHEMA)
    print("http://127.0.0.1:8000/", flush=True)
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
