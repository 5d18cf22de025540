BEGIN TRANSACTION;
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL,
    name TEXT NOT NULL,
    answer TEXT NOT NULL,
    asked_for TEXT NOT NULL CHECK (asked_for IN ('ensemble', 'person')),
    answered_at TEXT NOT NULL
);
INSERT INTO "answers" VALUES(1,'ba2d52acad925203f3951979bf99c9f966054f46e02f4e8b26f94911d461e90f','images/ba2d52acad925203f3951979bf99c9f966054f46e02f4e8b26f94911d461e90f.png','flagged.png','{"label": "CE", "confidence": 0.6, "probabilities": {"CE": 0.6, "LAA": 0.4}, "entropy": 0.67, "disagreement": 0.1, "std": {"CE": 0.2, "LAA": 0.2}, "member_probabilities": {"one": {"CE": 0.6, "LAA": 0.4}, "two": {"CE": 0.3, "LAA": 0.7}}, "prediction_set": ["CE", "LAA"], "review": true, "release": null}','ensemble','2026-11-30T02:40:33+00:00');
INSERT INTO "answers" VALUES(2,'c3c72f2048753b37baef24ba160fc512af332549f4fa9f396eaa747126b9adb6','images/c3c72f2048753b37baef24ba160fc512af332549f4fa9f396eaa747126b9adb6.png','waiting.png','{"label": "CE", "confidence": 0.6, "probabilities": {"CE": 0.6, "LAA": 0.4}, "entropy": 0.67, "disagreement": 0.1, "std": {"CE": 0.2, "LAA": 0.2}, "member_probabilities": {"one": {"CE": 0.6, "LAA": 0.4}, "two": {"CE": 0.3, "LAA": 0.7}}, "prediction_set": ["CE", "LAA"], "review": true, "release": null}','ensemble','2026-11-30T02:40:33+00:00');
INSERT INTO "answers" VALUES(3,'0a7c57ab363f7995f646fd4f01e02c8a74657a81c9e75ad3464ffce34e96426c','images/0a7c57ab363f7995f646fd4f01e02c8a74657a81c9e75ad3464ffce34e96426c.png','sent.png','{"label": "CE", "confidence": 0.6, "probabilities": {"CE": 0.6, "LAA": 0.4}, "entropy": 0.67, "disagreement": 0.1, "std": {"CE": 0.2, "LAA": 0.2}, "member_probabilities": {"one": {"CE": 0.6, "LAA": 0.4}, "two": {"CE": 0.3, "LAA": 0.7}}, "prediction_set": ["CE"], "review": false, "release": null}','person','2026-11-30T02:40:33+00:00');
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL REFERENCES answers (sha256) ON DELETE CASCADE,
    label TEXT,
    decided_at TEXT NOT NULL,
    reviewer TEXT NOT NULL
);
INSERT INTO "decisions" VALUES(1,'ba2d52acad925203f3951979bf99c9f966054f46e02f4e8b26f94911d461e90f','LAA','2026-11-30T02:40:33+00:00','Ada');
INSERT INTO "decisions" VALUES(2,'0a7c57ab363f7995f646fd4f01e02c8a74657a81c9e75ad3464ffce34e96426c','LAA','2026-11-30T02:40:33+00:00','Ada');
INSERT INTO "decisions" VALUES(3,'0a7c57ab363f7995f646fd4f01e02c8a74657a81c9e75ad3464ffce34e96426c','CE','2026-11-30T02:40:33+00:00','Ada');
CREATE INDEX decisions_by_image ON decisions (sha256, number);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('answers',3);
INSERT INTO "sqlite_sequence" VALUES('decisions',3);
COMMIT;
PRAGMA user_version = 1;
