"""Live editing: a service that takes facts, writes them in turns, proves each turn before it is live, and can take it back.

    POST /v1/edits --> store (SQLite, PostgreSQL) --> writer, one by lease --> a live run: turn, gates, keep or undo and bisect
                          ^        |                        |
    console, clients -----'        `--> audit, history      `--> versions --> publishing, chat with any of them

What is acknowledged is in the database, and the database alone says which version of the weights counts: a version's files
are on the disk before its row is, and files without a row are never read. So a process may be killed at any moment.

    states.py  tables.py  database.py  audit.py  edits.py     what is stored, and which change may follow which
    lease.py  folders.py  gates.py  admission.py  writer.py   the one process that changes weights
    app.py  routes/  console/  speaker.py                     what answers
    serve.py                                                  starts them, and starts again what dies
"""
