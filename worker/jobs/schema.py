"""The tables of the job store, and the migration steps that create them.

STEPS run in order, each in a transaction that also writes the version it leads to; processes that start at the same
time take turns. A released step never changes: to change the schema, append a step. Queries use the Tables below, and a
test compares these with the result of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from worker.errors import ConfigError

metadata = sa.MetaData()

# The columns that change or are read often. Large texts are in `documents`, because SQLite rewrites the whole row.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True),  # the order of submission
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("filename", sa.Text),
    sa.Column("upload", sa.Text),
    sa.Column("webhook", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),  # seconds since 1970, as all times
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),  # JSON
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("webhook_at", sa.Double),  # when the webhook is due; null if nothing is to be delivered
    sa.Column("bytes", sa.BigInteger, nullable=False),  # size of its payload and result
    sa.Column("payload", sa.Text),  # JSON; null if it is large and therefore in `documents`
    sa.Column("owner", sa.Text),  # names the API key that submitted it; null if none was required
    sa.Column("audio_sec_done", sa.Double),  # null while it is unknown
    sa.Column("audio_sec_total", sa.Double),
    sa.Column("task", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("upload_bytes", sa.BigInteger),
    sa.Column("batch", sa.BigInteger),  # the number of the batch whose line the job is; null for other jobs
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # payload, result, or "text N": text of a running job, by N
    sa.Column("body", sa.Text, nullable=False),  # JSON
)

# The files that clients upload at /v1/files, and the results of batches.
files = sa.Table(
    "files",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True),  # the order of creation
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("owner", sa.Text),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("upload", sa.Text, nullable=False),  # the name of the file in the folder of uploads
)

# The batches of /v1/batches.
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("owner", sa.Text),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("input_upload", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text),  # JSON
    sa.Column("output_keep_sec", sa.Double, nullable=False),  # how long the files of results are kept
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("in_progress_at", sa.Double),
    sa.Column("finalizing_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("failed_at", sa.Double),
    sa.Column("expired_at", sa.Double),
    sa.Column("cancelling_at", sa.Double),
    sa.Column("cancelled_at", sa.Double),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("errors", sa.Text),  # JSON
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("read_bytes", sa.BigInteger, nullable=False),  # of the input: what has become jobs
    sa.Column("read_lines", sa.Integer, nullable=False),
    sa.Column("holder", sa.Text),  # the process that took the last step
    sa.Column("due_at", sa.Double),  # when the next step is due; null if the batch has ended
)

Step = Sequence[str]

STEPS: tuple[Step, ...] = (
    (
        """CREATE TABLE jobs (
            number {serial}, id VARCHAR(36) NOT NULL UNIQUE, kind TEXT NOT NULL, filename TEXT, upload TEXT, webhook
            TEXT, state TEXT NOT NULL CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
            created_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION, completed_at DOUBLE PRECISION,
            done INTEGER NOT NULL, total INTEGER NOT NULL, attempts INTEGER NOT NULL, error TEXT,
            lease_owner TEXT, lease_until DOUBLE PRECISION, webhook_at DOUBLE PRECISION, bytes BIGINT NOT NULL, payload
            TEXT)""",
        "CREATE INDEX jobs_state ON jobs (state, number)",
        "CREATE INDEX jobs_webhook ON jobs (webhook_at) WHERE webhook_at IS NOT NULL",
        "CREATE TABLE documents (number BIGINT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, "
        "PRIMARY KEY (number, name))",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN owner TEXT",
        "CREATE INDEX jobs_owner ON jobs (owner, number) WHERE owner IS NOT NULL",
    ),
    ("CREATE INDEX jobs_turns ON jobs (state, owner, number)",),
    (
        "ALTER TABLE jobs ADD COLUMN audio_sec_done DOUBLE PRECISION",
        "ALTER TABLE jobs ADD COLUMN audio_sec_total DOUBLE PRECISION",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN task TEXT",
        "ALTER TABLE jobs ADD COLUMN model TEXT",
        "ALTER TABLE jobs ADD COLUMN upload_bytes BIGINT",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN batch BIGINT",
        "CREATE INDEX jobs_batch ON jobs (batch, state) WHERE batch IS NOT NULL",
        """CREATE TABLE files (
            number {serial}, id VARCHAR(64) NOT NULL UNIQUE, owner TEXT, filename TEXT NOT NULL, purpose TEXT NOT NULL,
            bytes BIGINT NOT NULL, created_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL,
            upload TEXT NOT NULL)""",
        "CREATE INDEX files_owner ON files (owner, number)",
        """CREATE TABLE batches (
            number {serial}, id VARCHAR(64) NOT NULL UNIQUE, owner TEXT, endpoint TEXT NOT NULL,
            input_file_id TEXT NOT NULL, input_upload TEXT NOT NULL, metadata TEXT,
            output_keep_sec DOUBLE PRECISION NOT NULL, status TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION NOT NULL, in_progress_at DOUBLE PRECISION, finalizing_at DOUBLE PRECISION,
            completed_at DOUBLE PRECISION, failed_at DOUBLE PRECISION, expired_at DOUBLE PRECISION,
            cancelling_at DOUBLE PRECISION, cancelled_at DOUBLE PRECISION, total INTEGER NOT NULL,
            completed INTEGER NOT NULL, failed INTEGER NOT NULL, errors TEXT, output_file_id TEXT, error_file_id TEXT,
            read_bytes BIGINT NOT NULL, read_lines INTEGER NOT NULL, holder TEXT, due_at DOUBLE PRECISION)""",
        "CREATE INDEX batches_owner ON batches (owner, number)",
        "CREATE INDEX batches_due ON batches (due_at) WHERE due_at IS NOT NULL",
    ),
)

_SERIAL = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"}
_LOCK = 0x41766961727900


def migrate(engine: sa.Engine, steps: Sequence[Step] = STEPS) -> None:
    """Migrate the store to the last step. A step that fails changes nothing.

    Raises: ConfigError if a newer version has written the store.
    """
    for version in range(len(steps) + 1):
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # in SQLite, the write lock has the same effect
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
            found = connection.scalar(sa.text("SELECT max(version) FROM schema_version")) or 0
            if found > len(steps):
                raise ConfigError(
                    f"the job store has version {found}, written by a newer Aviary, but this one supports versions up "
                    f"to {len(steps)}. Upgrade Aviary, or name another store in JOBS_URL."
                )
            if version > found:
                for statement in steps[version - 1]:
                    connection.execute(sa.text(statement.format(serial=_SERIAL[engine.dialect.name])))
                connection.execute(sa.text("INSERT INTO schema_version VALUES (:version)"), {"version": version})
