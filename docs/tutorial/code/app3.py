"""A live list of tasks, or of the open ones alone."""

import json
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from syncserver_client import Backend, BackendError

BACKEND = "http://127.0.0.1:5801/backend"
KEY_FILE = Path.home() / ".local/state/syncserver/api-key"
KEY = KEY_FILE.read_text().strip()
PAGE = Path(__file__).with_name("page3.html")
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


def one(db, key):
    found = db.execute("select * from task where id = ?", [key]).fetchone()
    if found is None:
        raise LookupError(f"no task {key}")
    return as_row(found)


def delta(kind, version, **rows):
    return {"type": kind, "model": "Task", "version": version, **rows}


def add(db, title):
    inserted = db.execute("insert into task (title) values (?)", [title])
    new = one(db, inserted.lastrowid)
    return delta("insert", new["version"], data=new)


TOGGLE = "update task set done = not done, version = version + 1 where id = ?"


def toggle(db, key):
    old = one(db, key)
    db.execute(TOGGLE, [key])
    new = one(db, key)
    return delta("update", new["version"], oldData=old, newData=new)


def remove(db, key):
    old = one(db, key)
    db.execute("delete from task where id = ?", [key])
    return delta("delete", old["version"] + 1, data=old)


def change(what, *arguments):
    try:
        with closing(connect()) as db, db:  # commits, or rolls back
            db.execute("begin immediate")
            published = what(db, *arguments)
    except LookupError:
        return  # somebody else has removed it: no change, nothing to tell
    try:  # the commit is done: now tell of it
        with Backend(BACKEND, KEY) as backend:
            backend.publish([published])
    except BackendError as error:
        print("not published:", error)


def read_tasks(only_open):
    if only_open:
        only = ["==", "done", False]
        item = {"dealer": "FilteredTasks", "query": only}
        select = "select * from task where not done order by id"
    else:
        item = {"dealer": "AllTasks", "query": None}
        select = "select * from task order by id"
    with Backend(BACKEND, KEY) as backend:  # the token first ...
        token = backend.authorize([item])
    with closing(connect()) as db:  # ... the rows after it
        found = db.execute(select)
        rows = [as_row(row) for row in found]
    return {"token": token, "rows": rows}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path in ("/", "/?open"):
            self.answer("text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path in ("/tasks", "/tasks?open"):
            try:
                only_open = self.path.endswith("?open")
                tasks = json.dumps(read_tasks(only_open)).encode()
                self.answer("application/json", tasks)
            except BackendError as error:
                self.send_error(503, explain=str(error))
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
