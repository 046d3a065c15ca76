-- The tables of the ledger. Every table ends with the seal of the row, which `SealedRows` writes and checks.
--
-- The same content can be made twice, by stages of other names or from other parents: an artifact is one making, and
-- its digest is not unique. Steps and states belong to stages that may not be finished, so they refer to no stage row.
--
-- SQLite keeps each statement as it stands here, blanks included, and a home whose tables were made by another one
-- counts as damaged: whoever changes a statement raises the version.

CREATE TABLE artifacts (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL, kind TEXT NOT NULL, stage TEXT NOT NULL,
        config_digest TEXT NOT NULL, metrics TEXT NOT NULL, created_s REAL NOT NULL, seal TEXT);
CREATE INDEX artifacts_by_digest ON artifacts (digest);

CREATE TABLE parents (
        child INTEGER NOT NULL REFERENCES artifacts (id), position INTEGER NOT NULL,
        parent INTEGER NOT NULL REFERENCES artifacts (id), seal TEXT, PRIMARY KEY (child, position));
CREATE INDEX parents_by_parent ON parents (parent);

CREATE TABLE runs (
        name TEXT PRIMARY KEY, recipe TEXT NOT NULL, started_s REAL NOT NULL, seal TEXT);

CREATE TABLE run_stages (
        run TEXT NOT NULL REFERENCES runs (name), position INTEGER NOT NULL, name TEXT NOT NULL,
        kind TEXT NOT NULL, key TEXT NOT NULL, seal TEXT, PRIMARY KEY (run, position));

CREATE TABLE stages (
        key TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs (name), name TEXT NOT NULL, kind TEXT NOT NULL,
        artifact INTEGER NOT NULL REFERENCES artifacts (id), seconds REAL NOT NULL, tokens INTEGER NOT NULL,
        finished_s REAL NOT NULL, seal TEXT);

CREATE TABLE steps (
        stage_key TEXT NOT NULL, step INTEGER NOT NULL, groups_digest TEXT, metrics TEXT, seal TEXT,
        PRIMARY KEY (stage_key, step));

CREATE TABLE states (
        stage_key TEXT NOT NULL, step INTEGER NOT NULL, digest TEXT NOT NULL, seal TEXT,
        PRIMARY KEY (stage_key, step));

-- The classes of machines on which a stage ran.
CREATE TABLE machines (
        stage_key TEXT NOT NULL, position INTEGER NOT NULL, machine TEXT NOT NULL, seal TEXT,
        PRIMARY KEY (stage_key, position));

-- What the files of a run's directory were when they were last written.
CREATE TABLE views (
        run TEXT NOT NULL REFERENCES runs (name), path TEXT NOT NULL, digest TEXT NOT NULL, seal TEXT,
        PRIMARY KEY (run, path));

-- Damage that was met, and what was done about it.
CREATE TABLE incidents (
        id INTEGER PRIMARY KEY, at_s REAL NOT NULL, file TEXT NOT NULL, digest TEXT NOT NULL, what TEXT NOT NULL,
        done TEXT NOT NULL, seal TEXT);
