"""The queries of summary and of the analyses across ranks, one text for every engine.

The subset of SQL that DuckDB and Spark read the same way: no default order of NULLs, no integer
division, no list functions, no ``max_by`` where there can be ties, sums of durations and sizes
only (a sum of clock times leaves 64 bits), an order that leaves nothing to chance.
"""

from __future__ import annotations

# Composite ops contain others that are recorded too: counting both would count time twice.
# 128 is events.OpFlag.COMPOSITE.
_LEAVES = "(flags & 128) = 0"
_BAD = "(nan_count > 0 OR inf_count > 0)"
# 48 is OpFlag.GARBAGE and CONSTANT: memory that nobody has written yet, and Infs meant as such.
_BORN = f"{_BAD} AND (flags & 48) = 0"

OPS = f"""
    SELECT name, module, phase, file, line, count(*) AS n, count(duration_ns) AS timed,
           sum(duration_ns) AS duration_ns, count(*) FILTER (WHERE {_BAD}) AS bad,
           (flags & 4096) <> 0 AS profiled
    FROM ops WHERE {_LEAVES}
    GROUP BY name, module, phase, file, line, (flags & 4096) <> 0"""
"""What ran, once over all ops: every ranking of ``summary`` is a sum over these rows. 4096 is
OpFlag.PROFILED: where a trace holds the same ops as recorded, too, the profiled ones have the
times."""

OP_STEPS = f"SELECT count(DISTINCT step) AS steps FROM ops WHERE {_LEAVES}"

STEPS = """
    SELECT count(*) AS n, min(step) AS first, max(step) AS last, sum(n_ops) AS n_ops,
           sum(hits) AS hits, percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ns) AS median_ns,
           max(duration_ns) AS max_ns
    FROM steps"""

SLOWEST_STEP = """
    SELECT step, rank FROM steps WHERE duration_ns IS NOT NULL
    ORDER BY duration_ns DESC, step, rank LIMIT 1"""

SCALARS = """
    SELECT step, scalars FROM steps WHERE scalars IS NOT NULL AND scalars <> '{}'
    ORDER BY step, rank, start_ns"""

FINDINGS = """
    SELECT step, name AS rule, severity, message, count(*) AS times, min(event_id) AS first_event
    FROM events WHERE kind = 'finding' GROUP BY step, name, severity, message
    ORDER BY step NULLS FIRST, min(event_id), rule NULLS FIRST, message NULLS FIRST"""

NOTES = """
    SELECT name AS kind, severity, message, min(step) AS step, count(*) AS times
    FROM events WHERE kind = 'note' GROUP BY name, severity, message
    ORDER BY step NULLS FIRST, kind NULLS FIRST, message NULLS FIRST"""

RANK_OPS = f"""
    SELECT rank, count(*) AS n, count(*) FILTER (WHERE {_BAD}) AS bad
    FROM ops GROUP BY rank ORDER BY rank"""

RANK_STEPS = """
    SELECT rank, count(*) AS n, sum(duration_ns) AS total_ns,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ns) AS median_ns,
           max(duration_ns) AS max_ns, max(step) AS last,
           sum(CASE WHEN step > (SELECT min(step) FROM steps) THEN duration_ns END) AS later_ns
    FROM steps GROUP BY rank ORDER BY rank"""

STEP_SKEW = """
    WITH timed AS (
        SELECT rank, step, duration_ns,
               row_number() OVER (PARTITION BY step ORDER BY duration_ns DESC, rank) AS place,
               count(*) OVER (PARTITION BY step) AS ranks
        FROM steps WHERE duration_ns IS NOT NULL)
    SELECT step, max(ranks) AS ranks, min(duration_ns) AS min_ns, max(duration_ns) AS max_ns,
           max(CASE WHEN place = 1 THEN rank END) AS slowest
    FROM timed WHERE ranks > 1 GROUP BY step ORDER BY step"""

FIRST_BAD = f"""
    WITH first AS (SELECT shard, min(op_id) AS op_id FROM ops WHERE {_BORN} GROUP BY shard)
    SELECT /*+ BROADCAST(f) */ o.rank, o.step, o.ord, o.op_id, o.name, o.phase, o.module,
           o.file, o.line, o.start_ns + s.clock_offset_ns AS t_ns, s.attempt
    FROM ops AS o JOIN first AS f ON o.shard = f.shard AND o.op_id = f.op_id
    JOIN shards AS s ON o.shard = s.shard
    WHERE {_BORN} ORDER BY t_ns, rank"""
"""Each shard's first op with a NaN or Inf in its first output (ids ascend as ops start). The
hint tells Spark that one side is small; DuckDB reads a comment."""

_SOURCES = {
    # What a live session recorded.
    "collectives": """
        SELECT shard, rank, step, seq, coalesce(comm_group, '') AS grp, name, dtype, comm_ranks,
               size_bytes, tid, start_ns, duration_ns
        FROM collectives""",
    # Device kernels of a profile; their names hold the collective where nothing else tells it.
    "kernels": """
        SELECT shard, rank, step, CAST(NULL AS BIGINT) AS seq, coalesce(comm_group, '') AS grp,
               CASE WHEN collective IS NOT NULL THEN lower(replace(collective, '_', ''))
                    WHEN lower(name) LIKE '%allreduce%' THEN 'allreduce'
                    WHEN lower(name) LIKE '%allgather%' THEN 'allgather'
                    WHEN lower(name) LIKE '%reducescatter%' THEN 'reducescatter'
                    WHEN lower(name) LIKE '%alltoall%' THEN 'alltoall'
                    WHEN lower(name) LIKE '%broadcast%' THEN 'broadcast'
                    WHEN lower(name) LIKE '%sendrecv%' THEN 'sendrecv'
                    WHEN lower(name) LIKE '%reduce%' THEN 'reduce'
                    ELSE 'other' END AS name,
               comm_dtype AS dtype, comm_ranks, size_bytes, stream AS tid, start_ns, duration_ns
        FROM kernels WHERE kind = 'comm'""",
    # What PyTorch's profiler tells of collectives on the host.
    "spans": """
        SELECT shard, rank, step, CAST(NULL AS BIGINT) AS seq, '' AS grp,
               lower(replace(split_part(name, ':', 2), '_', '')) AS name,
               CAST(NULL AS STRING) AS dtype, CAST(NULL AS INT) AS comm_ranks,
               CAST(NULL AS BIGINT) AS size_bytes, CAST(tid AS INT) AS tid, start_ns, duration_ns
        FROM spans WHERE name LIKE 'gloo:%' OR name LIKE 'mpi:%' OR name LIKE 'ucc:%'""",
    # TensorFlow's own ops, and profiles whose host collectives were taken for ops.
    "ops": """
        SELECT shard, rank, step, CAST(NULL AS BIGINT) AS seq, '' AS grp,
               CASE WHEN name LIKE 'gloo:%' THEN lower(replace(split_part(name, ':', 2), '_', ''))
                    WHEN name LIKE 'CollectiveReduceScatter%' THEN 'reducescatter'
                    WHEN name LIKE 'CollectiveReduce%' THEN 'allreduce'
                    WHEN name LIKE 'CollectiveGather%' THEN 'allgather'
                    WHEN name LIKE 'CollectiveAllToAll%' THEN 'alltoall'
                    ELSE 'broadcast' END AS name,
               CAST(NULL AS STRING) AS dtype, CAST(NULL AS INT) AS comm_ranks,
               CAST(NULL AS BIGINT) AS size_bytes, tid, start_ns, duration_ns
        FROM ops
        WHERE name LIKE 'gloo:%' OR name LIKE 'CollectiveReduce%' OR name LIKE 'CollectiveGather%'
           OR name LIKE 'CollectiveAllToAll%' OR name LIKE 'CollectiveBcast%'""",
}

COLLECTIVE_SOURCES = tuple(_SOURCES)
"""Where collectives can be found, the best first."""

SYNCHRONISING = ("allreduce", "barrier", "allgather", "reducescatter", "alltoall")
"""Collectives that no rank can leave before every rank has entered."""


def collective_counts(source: str) -> str:
    """Return the query of how many collective calls a source holds."""
    return f"SELECT count(*) AS n FROM ({_SOURCES[source]}) AS c"


def _calls(source: str) -> str:
    """Return the common table expression ``calls``: every call, with what pairs it with others'.

    Calls are paired by their number in their process group where that was recorded, else by
    their order among the same collective of the step.
    """
    return f"""
    source AS ({_SOURCES[source]}),
    numbered AS (
        SELECT c.*, s.attempt,
               CASE WHEN c.seq IS NULL THEN c.step ELSE -2 END AS in_step,
               CASE WHEN c.seq IS NULL THEN c.name ELSE '' END AS of_name,
               CASE WHEN c.seq IS NULL THEN CAST(row_number() OVER (
                   PARTITION BY c.shard, c.step, c.grp, c.name, c.seq
                   ORDER BY c.start_ns, c.tid) AS BIGINT) ELSE c.seq END AS number
        FROM source AS c JOIN shards AS s ON c.shard = s.shard),
    calls AS (
        SELECT *, count(*) OVER (
                   PARTITION BY attempt, grp, in_step, of_name, number, rank) AS again
        FROM numbered)"""


_KEY = "attempt, grp, in_step, of_name, number"
_WARM = """step > (
    SELECT CASE WHEN max(step) > min(step) + 2 THEN min(step) ELSE min(step) - 1 END
    FROM collectives)"""
_SYNC = "name IN (" + ", ".join(f"'{name}'" for name in SYNCHRONISING) + ")"


def _placed(source: str) -> str:
    """Return ``placed``: calls of more than one rank; place 1 is the rank that came last.

    A synchronising collective ends on all ranks at nearly one instant, so the rank whose own call
    was shortest came last, and the others' further time is waiting. No clock is compared. The
    first step of a live recording is left out: ranks take turns at starting up.
    """
    warm = f" AND {_WARM}" if source == "collectives" else ""
    return f"""{_calls(source)},
    ranked AS (
        SELECT *, count(*) OVER (PARTITION BY {_KEY}) AS ranks,
               min(duration_ns) OVER (PARTITION BY {_KEY}) AS least_ns,
               row_number() OVER (PARTITION BY {_KEY} ORDER BY duration_ns, rank) AS place
        FROM calls WHERE {_SYNC} AND duration_ns IS NOT NULL AND again = 1{warm}),
    placed AS (
        SELECT *, duration_ns - least_ns AS wait_ns,
               min(CASE WHEN place > 1 THEN duration_ns END)
                   OVER (PARTITION BY {_KEY}) - least_ns AS lead_ns
        FROM ranked WHERE ranks > 1)"""


def rank_waits(source: str) -> str:
    """Return the query of what each rank waited, and made the others wait, at collectives."""
    return f"""
    WITH {_placed(source)}
    SELECT rank, count(*) AS calls, sum(duration_ns) AS inside_ns, sum(wait_ns) AS waited_ns,
           count(*) FILTER (WHERE place = 1) AS last,
           coalesce(sum(CASE WHEN place = 1 THEN lead_ns END), 0) AS caused_ns
    FROM placed GROUP BY rank ORDER BY rank"""


def bandwidth(source: str) -> str:
    """Return the query of how long each kind and size of collective moved data.

    The shortest of its ranks' calls waited for nobody: it is the transfer.
    """
    return f"""
    WITH {_placed(source)}
    SELECT name, grp, ranks, size_bytes, count(*) AS calls,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY least_ns) AS median_ns,
           sum(least_ns) AS total_ns
    FROM placed WHERE place = 1
    GROUP BY name, grp, ranks, size_bytes
    ORDER BY total_ns DESC, name, grp, ranks, size_bytes NULLS FIRST"""


def mismatched(source: str) -> str:
    """Return the query of collectives that ranks of a group did not call alike."""
    return f"""
    WITH {_calls(source)}
    SELECT grp, number, count(*) AS ranks, min(name) AS one, max(name) AS other,
           min(size_bytes) AS least_bytes, max(size_bytes) AS most_bytes
    FROM calls WHERE seq IS NOT NULL AND again = 1
    GROUP BY attempt, grp, number
    HAVING min(name) <> max(name)
        OR (min(name) IN ('allreduce', 'reducescatter') AND min(size_bytes) <> max(size_bytes))
    ORDER BY grp, number LIMIT 20"""


def clocks(source: str) -> str:
    """Return the query of what bounds each shard's clock against the first rank's.

    No rank leaves a synchronising collective before every rank has entered it, so what must be
    added to a rank's times lies between ``low_ns`` and ``high_ns``. ``middle_ns`` is the median
    difference of the moments at which both left, ``begin_ns`` and ``end_ns`` the same over the
    first and the last quarter of the calls, ``quickest_ns`` the shortest call of
    any rank.
    """
    return f"""
    WITH {_calls(source)},
    whole AS (
        SELECT {_KEY}, shard, rank, start_ns AS entered, start_ns + duration_ns AS gone,
               min(duration_ns) OVER (PARTITION BY {_KEY}) AS least_ns
        FROM calls WHERE {_SYNC} AND duration_ns IS NOT NULL AND again = 1),
    first AS (SELECT * FROM whole WHERE rank = (SELECT min(rank) FROM whole)),
    pairs AS (
        SELECT w.shard, w.rank, f.entered - w.gone AS low, f.gone - w.entered AS high,
               f.gone - w.gone AS apart, w.gone, w.least_ns,
               ntile(4) OVER (PARTITION BY w.shard ORDER BY w.gone, w.number) AS quarter
        FROM whole AS w JOIN first AS f
          ON w.attempt = f.attempt AND w.grp = f.grp AND w.in_step = f.in_step
         AND w.of_name = f.of_name AND w.number = f.number)
    SELECT shard, rank, count(*) AS calls, max(low) AS low_ns, min(high) AS high_ns,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY apart) AS middle_ns,
           percentile_cont(0.25) WITHIN GROUP (ORDER BY apart) AS lower_ns,
           percentile_cont(0.75) WITHIN GROUP (ORDER BY apart) AS upper_ns,
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY CASE WHEN quarter = 1 THEN apart END) AS begin_ns,
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY CASE WHEN quarter = 4 THEN apart END) AS end_ns,
           min(least_ns) AS quickest_ns, min(gone) AS from_ns, max(gone) AS to_ns
    FROM pairs GROUP BY shard, rank ORDER BY rank, shard"""


def rank_own(source: str) -> str:
    """Return the query of each rank's own part of a step: its time without its waits."""
    return f"""
    WITH {_placed(source)},
    waits AS (SELECT step, rank, sum(wait_ns) AS waited_ns FROM placed GROUP BY step, rank)
    SELECT s.rank, percentile_cont(0.5) WITHIN GROUP (
               ORDER BY s.duration_ns - coalesce(w.waited_ns, 0)) AS own_ns
    FROM steps AS s LEFT JOIN waits AS w ON w.step = s.step AND w.rank = s.rank
    WHERE s.duration_ns IS NOT NULL GROUP BY s.rank ORDER BY s.rank"""


RANK_PARTS = f"""
    SELECT rank, 'span' AS what, name, sum(duration_ns) AS total_ns, count(*) AS n
    FROM spans
    WHERE kind IN ('annotation', 'data') AND name NOT LIKE 'gloo:%' AND duration_ns IS NOT NULL
    GROUP BY rank, name
    UNION ALL
    SELECT rank, 'op' AS what, name, sum(duration_ns) AS total_ns, count(*) AS n
    FROM ops WHERE {_LEAVES} AND duration_ns IS NOT NULL AND name NOT LIKE 'c10d::%'
      AND name NOT LIKE 'Collective%'
    GROUP BY rank, name
    UNION ALL
    SELECT rank, 'sample' AS what, split_part(stack, chr(10), -1) AS name,
           sum(duration_ns) AS total_ns, count(*) AS n
    FROM samples GROUP BY rank, split_part(stack, chr(10), -1)
    ORDER BY rank, what, name"""
"""Where each rank's time went: by op, by the ranges that the program named, and by the innermost
Python frame where the host was sampled."""

ERRORS = """
    SELECT rank, step, t_ns, message, payload FROM events
    WHERE kind = 'finding' AND severity = 'error'
    ORDER BY step NULLS FIRST, rank, event_id LIMIT 10000"""

FINGERPRINTED = """
    SELECT count(DISTINCT step) AS steps, count(DISTINCT rank) AS ranks, min(step) AS first,
           max(step) AS last, count(DISTINCT name) AS names
    FROM fingerprints"""

DIVERGED = """
    SELECT step, kind, name, count(*) AS ranks, count(DISTINCT checksum) AS versions,
           min(l2) AS least_l2, max(l2) AS most_l2
    FROM fingerprints GROUP BY step, kind, name
    HAVING count(DISTINCT checksum) > 1
    ORDER BY step, kind DESC, name LIMIT 1000"""
"""Parameters whose bits were not the same on every rank, the earliest first."""

DIVERGED_RANKS = """
    WITH versions AS (
        SELECT step, kind, name, checksum, count(*) AS n, min(rank) AS low
        FROM fingerprints GROUP BY step, kind, name, checksum),
    chosen AS (
        SELECT *, row_number() OVER (PARTITION BY step, kind, name ORDER BY n DESC, low) AS place
        FROM versions)
    SELECT f.rank, f.kind, min(f.step) AS first, count(DISTINCT f.step) AS steps,
           count(DISTINCT f.name) AS names
    FROM fingerprints AS f JOIN chosen AS c
      ON f.step = c.step AND f.kind = c.kind AND f.name = c.name AND c.place = 1
    WHERE f.checksum <> c.checksum
    GROUP BY f.rank, f.kind ORDER BY first, f.rank, f.kind"""
"""Ranks that do not hold what most ranks hold (of equally many, what the lowest rank holds)."""


def portable() -> dict[str, str]:
    """Return every query by name, as the test that compares engines runs them."""
    texts = {
        "ops": OPS,
        "op_steps": OP_STEPS,
        "steps": STEPS,
        "slowest_step": SLOWEST_STEP,
        "scalars": SCALARS,
        "findings": FINDINGS,
        "notes": NOTES,
        "rank_ops": RANK_OPS,
        "rank_steps": RANK_STEPS,
        "step_skew": STEP_SKEW,
        "first_bad": FIRST_BAD,
        "fingerprinted": FINGERPRINTED,
        "diverged": DIVERGED,
        "diverged_ranks": DIVERGED_RANKS,
        "rank_parts": RANK_PARTS,
        "errors": ERRORS,
    }
    makers = (collective_counts, rank_waits, rank_own, bandwidth, mismatched, clocks)
    for source in COLLECTIVE_SOURCES:
        texts.update({f"{make.__name__}/{source}": make(source) for make in makers})
    return texts
