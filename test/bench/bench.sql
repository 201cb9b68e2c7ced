-- What the benchmark keeps in its database beside the extension: the rows of
-- the hand-written worker, the stand-in's ledger, and helpers to load, wait
-- and measure.  Everything is in schema bench of a throwaway cluster.

CREATE SCHEMA bench;

-- The queue of the hand-written worker.
CREATE TABLE public.node_outbox (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	from_account text NOT NULL,
	to_accounts text[] NOT NULL,
	title text NOT NULL,
	descr text NOT NULL,
	data_id text,
	status text NOT NULL DEFAULT 'pending',
	task_id text,
	error text
);

CREATE INDEX ON public.node_outbox (id) WHERE status = 'pending';

-- One row per request that the stand-in received: when (microseconds since the
-- epoch, on this machine's clock), and for whom.
CREATE TABLE bench.ledger (
	at bigint NOT NULL,
	accounts integer,
	account text
);

-- The same as it comes from the file.
CREATE TABLE bench.raw (line jsonb);

-- When each commit of the latency measure returned.
CREATE TABLE bench.committed (
	account text PRIMARY KEY,
	at bigint NOT NULL
);

CREATE FUNCTION bench.now_us() RETURNS bigint
LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- Enqueue single-account pushes: "contents" different ones, or, if that is 0,
-- a content of its own for every push.
CREATE FUNCTION bench.enqueue(prefix text, pushes bigint, contents integer DEFAULT 0)
RETURNS bigint
LANGUAGE sql VOLATILE AS
$$
	SELECT count(timpush_batch('administrator', ARRAY[prefix || '_' || i],
							   'Order ' || c, 'Your order ' || c || ' has left our warehouse.'))
	  FROM (SELECT i, CASE contents WHEN 0 THEN i ELSE i % contents END AS c
			  FROM generate_series(1, pushes) i) s
$$;

-- The same rows for the hand-written worker.
CREATE FUNCTION bench.enqueue_node(prefix text, pushes bigint)
RETURNS void
LANGUAGE sql VOLATILE AS
$$
	INSERT INTO node_outbox (from_account, to_accounts, title, descr)
	SELECT 'administrator', ARRAY[prefix || '_' || i],
		   'Order ' || i, 'Your order ' || i || ' has left our warehouse.'
	  FROM generate_series(1, pushes) i
$$;

-- Enqueue in one transaction; the time is that just before its commit.
CREATE PROCEDURE bench.load(prefix text, pushes bigint, contents integer,
							INOUT at bigint DEFAULT NULL)
LANGUAGE plpgsql AS
$$
BEGIN
	PERFORM bench.enqueue(prefix, pushes, contents);
	at := bench.now_us();
	COMMIT;
END
$$;

-- Is every push out of the outbox and every request finished?
CREATE FUNCTION bench.is_drained() RETURNS boolean
LANGUAGE sql VOLATILE AS
$$
	SELECT NOT EXISTS (SELECT FROM push_outbox)
	   AND NOT EXISTS (SELECT FROM push_request WHERE state IN ('sending', 'retry'))
$$;

-- Wait for that, holding no snapshot while asleep.
CREATE PROCEDURE bench.wait_drained(seconds double precision)
LANGUAGE plpgsql AS
$$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
	WHILE NOT bench.is_drained() LOOP
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'not drained after % seconds', seconds;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.1);
	END LOOP;
END
$$;

-- Wait until a number of pushes have been sent.
CREATE PROCEDURE bench.wait_finished(pushes bigint, seconds double precision)
LANGUAGE plpgsql AS
$$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
	WHILE (SELECT count(*) FROM push_result WHERE state = 'sent') < pushes LOOP
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'not % pushes sent after % seconds', pushes, seconds;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.5);
	END LOOP;
END
$$;

-- Wait until no request is open, whatever waits.
CREATE PROCEDURE bench.wait_settled(seconds double precision)
LANGUAGE plpgsql AS
$$
DECLARE
	until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
	WHILE EXISTS (SELECT FROM push_request WHERE state IN ('sending', 'retry')) LOOP
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'requests still open after % seconds', seconds;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.1);
	END LOOP;
END
$$;

-- One push at a time, each in its own transaction, with a pause after it; notes
-- when the commit returned.
CREATE PROCEDURE bench.one_by_one(prefix text, pushes integer, pause double precision)
LANGUAGE plpgsql AS
$$
DECLARE
	t bigint;
BEGIN
	FOR i IN 1 .. pushes LOOP
		PERFORM timpush_batch('administrator', ARRAY[prefix || '_' || i],
							  'Order ' || i, 'Your order ' || i || ' has left our warehouse.');
		COMMIT;
		t := bench.now_us();
		INSERT INTO bench.committed VALUES (prefix || '_' || i, t);
		COMMIT;
		PERFORM pg_sleep(pause);
	END LOOP;
END
$$;

-- A steady stream: "rate" pushes a second in transactions of ten, every push
-- with one of "contents" contents.
CREATE PROCEDURE bench.stream(prefix text, rate integer, seconds integer, contents integer)
LANGUAGE plpgsql AS
$$
DECLARE
	start bigint := bench.now_us();
	done bigint := 0;
	due bigint;
BEGIN
	WHILE done < rate::bigint * seconds LOOP
		PERFORM timpush_batch('administrator', ARRAY[prefix || '_' || i],
							  'Order ' || i % contents, 'Your order has left our warehouse.')
		   FROM generate_series(done + 1, done + 10) i;
		COMMIT;
		done := done + 10;
		due := start + done * 1000000 / rate;
		IF due > bench.now_us() THEN
			PERFORM pg_sleep((due - bench.now_us()) / 1000000.0);
		END IF;
	END LOOP;
END
$$;

-- The most calls that any one-second window of the ledger holds.
CREATE FUNCTION bench.most_calls_in_a_second() RETURNS bigint
LANGUAGE sql STABLE AS
$$
	SELECT max(n)
	  FROM (SELECT count(*) OVER (ORDER BY at RANGE BETWEEN 999999 PRECEDING AND CURRENT ROW) AS n
			  FROM bench.ledger) s
$$;
