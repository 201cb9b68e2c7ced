/*-------------------------------------------------------------------------
 *
 * http.c
 *	  Requests in flight: libcurl's multi interface on a WaitEventSet.
 *
 * One pool of connections for each server, one wait set for all of them with
 * the latch and the postmaster's death.  HTTP/2 puts all requests of a pool on
 * a connection or two; a peer that speaks only HTTP/1.1 gets as many as are
 * in flight.
 *
 * libcurl calls us back while it is in the middle of its work, so callbacks
 * never raise, never allocate from a memory context and never touch the wait
 * set: they note what libcurl wants, and sync_wait_set() does it afterwards.
 * libcurl keeps malloc.  All signals are blocked while libcurl runs, because
 * it may start a thread to resolve a name, and a thread must not run
 * PostgreSQL's signal handlers.
 *
 * libcurl repeats a request by itself when a reused connection dies before the
 * answer, a POST over HTTP/1.1 too, and reports success.  That would be a second
 * request that nobody knows of, so NEVER_REPEAT forbids it, and the body comes
 * from a read callback whose seek callback refuses.  The exception is an HTTP/2
 * stream that the peer has disowned, by REFUSED_STREAM or by a GOAWAY that names
 * an earlier one as the last that it will act upon (RFC 9113, 8.7): it is free
 * to go again.  libcurl knows but has no interface that tells, so we read it off
 * its trace, from the lines that libcurl writes itself and not from those that
 * repeat what the peer said.  Where a version words its trace differently, such
 * a request is in doubt, which is safe.
 *
 * How long a call may take is watched here and not by libcurl, which looks at
 * the clock before it looks at its sockets: answers that came while the worker
 * was held up in a commit would be thrown away.
 *
 * Crash story: what was in flight is in the journal as "sending", and in
 * doubt.  All state here is the process's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include <curl/curl.h>

#include "lib/ilist.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "http.h"
#include "timpush.h"

/*
 * Most bytes of an answer that are kept.  The largest one documented lists
 * 500 accounts; at 2 kB each, with any name and text, it is below this.
 */
#define MAX_ANSWER			(1024 * 1024)

/* Streams that a peer lets a connection carry are 100 or more (RFC 9113). */
#define STREAMS_PER_CONNECTION	100

/*
 * Idle connections are closed by us before the usual peer does, in whole
 * seconds that have passed.  A request that meets the end of a connection is
 * in doubt over HTTP/1.1, where some peers wait for 5 seconds only.
 */
#define MAX_IDLE_SECONDS		30L
#define MAX_IDLE_SECONDS_HTTP1	3L

#define MAX_EVENTS			64

/*
 * Before a call is given up, what has come is read, in so many turns at most:
 * of a large answer, libcurl takes some kilobytes at a time.
 */
#define MAX_LAST_TURNS		1000

/* How often a call of which nothing counts as sent starts again at once. */
#define MAX_RESTARTS		20

/*
 * An HTTP request has no use for this option, save that libcurl asks it, for
 * any protocol, whether it may repeat a request that had no answer.  It still
 * repeats what went on a stream that the peer refused, and its trace says so,
 * which it does not without the option.
 */
#define NEVER_REPEAT(easy) \
	curl_easy_setopt(easy, CURLOPT_RTSP_REQUEST, (long) CURL_RTSPREQ_RECEIVE)

/* Disowned streams of this many connections are remembered. */
#define MAX_GOAWAYS			16

/* The last stream that a connection's peer will act upon. */
typedef struct Goaway
{
	long		port;			/* our end of the connection */
	long		last_stream;
} Goaway;

struct HttpPool
{
	CURLM	   *multi;
	struct curl_slist *headers;
	CURL	  **idle;			/* handles to use again */
	int			nidle;
	int			in_flight;
	int64		deadline;		/* when libcurl wants to be called, or -1 */
	int			live;			/* calls not yet released */
	dlist_head	running;		/* calls in flight, oldest first */
	bool		http1;			/* the peer speaks no HTTP/2 */
	bool		retired;		/* goes away with its last call */
	int			streams;		/* that a connection may carry */
	bool		begun;			/* one was begun with that number ... */
	bool		refused;		/* ... and the peer has refused a stream */
	int			answers;		/* since that number was set */
	Goaway		goaways[MAX_GOAWAYS];
	int			next_goaway;
	HttpOptions options;
	HttpPool   *next;
};

struct HttpCall
{
	HttpPool   *pool;
	dlist_node	node;			/* in the pool's list while in flight */
	int64		deadline;		/* for its answer */
	CURL	   *easy;
	void	   *tag;
	char	   *body;
	size_t		len;
	size_t		pos;			/* bytes of it that libcurl has taken */
	long		stream;			/* HTTP/2 stream it went on, 0: none ... */
	long		port;			/* ... and our end of that connection */
	char	   *answer;
	size_t		answer_len;
	size_t		answer_size;
	bool		refused;		/* the peer refused that stream */
	bool		disowned;		/* the peer disowned the one before */
	int			restarts;		/* libcurl's and ours */
	CURLcode	result;
	char		error[CURL_ERROR_SIZE];
	HttpCall   *next;
};

/* What libcurl wants to know of a socket, by file descriptor. */
typedef struct SocketEntry
{
	HttpPool   *pool;			/* NULL: not ours */
	uint32		wanted;			/* WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE */
	uint32		known;			/* as the wait set has it */
	int			position;		/* in the wait set, -1: not there */
} SocketEntry;

static HttpPool *pools = NULL;
static HttpCall *finished_first = NULL;
static HttpCall *finished_last = NULL;
static int	in_flight = 0;

static SocketEntry *sockets = NULL;
static int	nsockets = 0;
static bool sockets_changed = false;
static bool rebuild_needed = true;
static bool out_of_memory = false;

static WaitEventSet *wait_set = NULL;
static int	wait_set_size = 0;
static int	wait_set_used = 0;

static int64
monotonic_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* Signals stay blocked in any thread that libcurl starts meanwhile. */
static void
enter_curl(void)
{
	sigprocmask(SIG_SETMASK, &BlockSig, NULL);
}

static void
leave_curl(void)
{
	sigprocmask(SIG_SETMASK, &UnBlockSig, NULL);
}

/* ------------------------------------------------------------------------
 * Callbacks: nothing in them may raise
 * ------------------------------------------------------------------------
 */

static size_t
read_body(char *buffer, size_t size, size_t nitems, void *arg)
{
	HttpCall   *call = arg;
	size_t		n = Min(size * nitems, call->len - call->pos);

	memcpy(buffer, call->body + call->pos, n);
	call->pos += n;
	return n;
}

static long
local_port(CURL *easy)
{
	long		port = 0;

	curl_easy_getinfo(easy, CURLINFO_LOCAL_PORT, &port);
	return port;
}

static void
note_goaway(HttpPool *pool, long port, long last_stream)
{
	Goaway	   *goaway = &pool->goaways[pool->next_goaway++ % MAX_GOAWAYS];

	goaway->port = port;
	goaway->last_stream = last_stream;
}

/* A new connection may have the port of an old one. */
static void
forget_goaways(HttpPool *pool, long port)
{
	for (int i = 0; i < MAX_GOAWAYS; i++)
	{
		if (pool->goaways[i].port == port)
			pool->goaways[i].port = 0;
	}
}

/* Has the peer said that it will not act upon the call's stream? */
static bool
stream_disowned(const HttpCall *call)
{
	if (call->refused)
		return true;
	for (int i = 0; call->stream > 0 && i < MAX_GOAWAYS; i++)
	{
		const Goaway *goaway = &call->pool->goaways[i];

		if (goaway->port == call->port && goaway->port != 0 &&
			call->stream > goaway->last_stream)
			return true;
	}
	return false;
}

/* The status of the answer, 0 if none has begun. */
static long
answer_status(const HttpCall *call)
{
	long		status = 0;

	curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

/* The call's attempt is over; what it sent counts unless it was disowned. */
static void
leave_stream(HttpCall *call)
{
	if (stream_disowned(call) && answer_status(call) == 0)
	{
		call->disowned = true;
		call->pos = 0;
	}
	call->refused = false;
	call->stream = 0;
	call->restarts++;
}

/* To send the body again is our decision, not libcurl's. */
static int
seek_body(void *arg, curl_off_t offset, int origin)
{
	const HttpCall *call = arg;

	return offset == 0 && origin == SEEK_SET && call->pos == 0 ?
		CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

/* The number after "name" in the text, or -1. */
static long
number_after(const char *text, const char *name)
{
	const char *found = strstr(text, name);

	return found != NULL ? strtol(found + strlen(name), NULL, 10) : -1;
}

/*
 * Read off libcurl's trace what became of streams; log nothing of it.  A GOAWAY
 * counts if the call has a stream, because only then it is certain which
 * connection it came on: a call that looks for one meets those of idle ones.
 */
static int
read_trace(CURL *easy, curl_infotype type, char *data, size_t size, void *arg)
{
	HttpCall   *call = arg;
	char		text[128];
	long		number;

	/* of a dozen lines for each request, few begin like those */
	if (type != CURLINFO_TEXT || call == NULL || size == 0 ||
		strchr("U[rRC", data[0]) == NULL)
		return 0;
	size = Min(size, sizeof(text) - 1);
	memcpy(text, data, size);
	text[size] = '\0';
	if ((number = number_after(text, "Using Stream ID: ")) > 0 ||	/* 7.x */
		(strstr(text, "OPENED stream") != NULL &&
		 (number = number_after(text, "[HTTP/2] [")) > 0))	/* 8.x */
	{
		call->stream = number;
		call->port = local_port(easy);
		call->disowned = false;
		if (number == 1)
		{
			forget_goaways(call->pool, call->port);
			call->pool->begun = true;
		}
	}
	else if (call->stream > 0 && strstr(text, "GOAWAY, error=") != NULL &&
			 (number = number_after(text, "last_stream=")) >= 0)
		note_goaway(call->pool, call->port, number);
	else if (strncmp(text, "REFUSED_STREAM, retrying", 24) == 0)
		call->refused = call->pool->refused = true;
	else if (strncmp(text, "Connection died, ", 17) == 0)
		leave_stream(call);
	return 0;
}

static size_t
write_answer(char *data, size_t size, size_t nmemb, void *arg)
{
	HttpCall   *call = arg;
	size_t		n = size * nmemb;

	if (call->answer_len + n > MAX_ANSWER)
		return 0;
	if (call->answer_len + n > call->answer_size)
	{
		size_t		wanted = Max(call->answer_size * 2,
								 Max(call->answer_len + n, 512));
		char	   *larger = realloc(call->answer, wanted);

		if (larger == NULL)
			return 0;
		call->answer = larger;
		call->answer_size = wanted;
	}
	memcpy(call->answer + call->answer_len, data, n);
	call->answer_len += n;
	return n;
}

static int
note_timer(CURLM *multi pg_attribute_unused(), long timeout_ms, void *arg)
{
	HttpPool   *pool = arg;

	pool->deadline = timeout_ms < 0 ? -1 : monotonic_us() + timeout_ms * 1000;
	return 0;
}

static bool
grow_sockets(int fd)
{
	int			wanted = Max(64, nsockets * 2);
	SocketEntry *larger;

	while (wanted <= fd)
		wanted *= 2;
	larger = realloc(sockets, wanted * sizeof(SocketEntry));
	if (larger == NULL)
		return false;
	for (int i = nsockets; i < wanted; i++)
	{
		larger[i].pool = NULL;
		larger[i].wanted = larger[i].known = 0;
		larger[i].position = -1;
	}
	sockets = larger;
	nsockets = wanted;
	return true;
}

static int
note_socket(CURL *easy pg_attribute_unused(), curl_socket_t fd, int what,
			void *arg, void *socketp pg_attribute_unused())
{
	HttpPool   *pool = arg;

	if (fd >= nsockets && !grow_sockets(fd))
	{
		out_of_memory = true;
		return -1;
	}
	if (what == CURL_POLL_REMOVE)
	{
		if (sockets[fd].pool != NULL)
			ReleaseExternalFD();
		sockets[fd].pool = NULL;
		sockets[fd].wanted = 0;
		/* the set has no removal, and a closed socket's number comes again */
		if (sockets[fd].position >= 0)
			rebuild_needed = true;
	}
	else
	{
		if (sockets[fd].pool == NULL)
			ReserveExternalFD();
		sockets[fd].pool = pool;
		sockets[fd].wanted = (what & CURL_POLL_IN ? WL_SOCKET_READABLE : 0) |
			(what & CURL_POLL_OUT ? WL_SOCKET_WRITEABLE : 0);
	}
	sockets_changed = true;
	return 0;
}

/* ------------------------------------------------------------------------
 * The wait set
 * ------------------------------------------------------------------------
 */

static void
build_wait_set(void)
{
	int			wanted = 2;

	for (int i = 0; i < nsockets; i++)
	{
		sockets[i].position = -1;
		if (sockets[i].pool != NULL)
			wanted++;
	}
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	wait_set_size = Max(16, wanted * 2);
	wait_set = create_wait_set(wait_set_size);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	wait_set_used = 2;
	rebuild_needed = false;
}

/* Make the wait set what libcurl wants. */
static void
sync_wait_set(void)
{
	if (!sockets_changed && !rebuild_needed)
		return;
	if (rebuild_needed)
		build_wait_set();
	for (int fd = 0; fd < nsockets; fd++)
	{
		SocketEntry *entry = &sockets[fd];

		if (entry->pool == NULL || entry->wanted == 0)
			continue;
		if (entry->position < 0)
		{
			if (wait_set_used == wait_set_size)
			{
				build_wait_set();
				fd = -1;
				continue;
			}
			entry->position = AddWaitEventToSet(wait_set, entry->wanted, fd, NULL, NULL);
			wait_set_used++;
		}
		else if (entry->known != entry->wanted)
			ModifyWaitEvent(wait_set, entry->position, entry->wanted, NULL);
		entry->known = entry->wanted;
	}
	sockets_changed = false;
}

/* ------------------------------------------------------------------------
 * Pools
 * ------------------------------------------------------------------------
 */

void
http_init(void)
{
	CURLcode	result;

	enter_curl();
	result = curl_global_init(CURL_GLOBAL_DEFAULT);
	leave_curl();
	if (result != CURLE_OK)
		ereport(FATAL,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("could not initialize libcurl: %s", curl_easy_strerror(result))));
}

static void
set_connection_limit(HttpPool *pool)
{
	long		n = pool->http1 ? pool->options.max_in_flight :
	Max(2, (pool->options.max_in_flight + STREAMS_PER_CONNECTION - 1) / STREAMS_PER_CONNECTION);

	curl_multi_setopt(pool->multi, CURLMOPT_MAX_HOST_CONNECTIONS, n);
	curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS, n);
}

static void
set_streams(HttpPool *pool, int streams)
{
	pool->streams = streams;
	pool->begun = pool->refused = false;
	pool->answers = 0;
	curl_multi_setopt(pool->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, (long) streams);
}

/*
 * How many streams a peer takes we learn only after a new connection has begun
 * some.  Those beyond are refused, libcurl leaves the connection, and the next
 * one fares no better.  So begin fewer, and more again if that goes well.
 */
static void
adjust_streams(HttpPool *pool)
{
	if (pool->begun && pool->refused)
		set_streams(pool, Max(pool->streams / 2, 1));
	else if (pool->streams < STREAMS_PER_CONNECTION &&
			 pool->answers >= STREAMS_PER_CONNECTION)
		set_streams(pool, Min(pool->streams * 2, STREAMS_PER_CONNECTION));
}

static void
free_pool(HttpPool *pool)
{
	for (int i = 0; i < pool->nidle; i++)
		curl_easy_cleanup(pool->idle[i]);
	free(pool->idle);
	if (pool->multi != NULL)
		curl_multi_cleanup(pool->multi);
	curl_slist_free_all(pool->headers);
	free((char *) pool->options.ca_file);
	free((char *) pool->options.proxy);
	free(pool);
}

/* A copy of the string, which may be NULL; *ok tells. */
static char *
copy_string(const char *string, bool *ok)
{
	char	   *copy = string != NULL ? strdup(string) : NULL;

	if (string != NULL && copy == NULL)
		*ok = false;
	return copy;
}

HttpPool *
http_pool_create(const HttpOptions *options)
{
	HttpPool   *pool = calloc(1, sizeof(HttpPool));
	bool		ok = true;

	if (pool == NULL)
		return NULL;
	enter_curl();
	pool->deadline = -1;
	dlist_init(&pool->running);
	pool->options = *options;
	pool->options.ca_file = copy_string(options->ca_file, &ok);
	pool->options.proxy = copy_string(options->proxy, &ok);
	pool->idle = malloc(sizeof(CURL *) * options->max_in_flight);
	pool->headers = curl_slist_append(NULL, "Content-Type: application/json");
	/* no waiting for "100 Continue" before the body */
	if (pool->headers == NULL || curl_slist_append(pool->headers, "Expect:") == NULL)
		ok = false;
	pool->multi = curl_multi_init();
	if (!ok || pool->idle == NULL || pool->multi == NULL)
	{
		free_pool(pool);
		leave_curl();
		return NULL;
	}
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, note_socket);
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, note_timer);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_PIPELINING, (long) CURLPIPE_MULTIPLEX);
	set_connection_limit(pool);
	set_streams(pool, STREAMS_PER_CONNECTION);
	leave_curl();
	pool->next = pools;
	pools = pool;
	return pool;
}

/* Remove the pool if it is retired and its last call is gone. */
static void
sweep_pool(HttpPool *pool)
{
	HttpPool  **link = &pools;

	if (!pool->retired || pool->live > 0)
		return;
	while (*link != pool)
		link = &(*link)->next;
	*link = pool->next;
	enter_curl();
	free_pool(pool);
	leave_curl();
}

void
http_pool_retire(HttpPool *pool)
{
	pool->retired = true;
	sweep_pool(pool);
}

/* A handle with all that does not change from call to call. */
static CURL *
new_handle(HttpPool *pool)
{
	CURL	   *easy = curl_easy_init();

	if (easy == NULL)
		return NULL;
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075500
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https");
#else
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long) CURLPROTO_HTTPS);
#endif
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	/* with a directory, the whole store would be read for each connection */
	curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	if (pool->options.ca_file != NULL)
		curl_easy_setopt(easy, CURLOPT_CAINFO, pool->options.ca_file);
	/* an empty name keeps libcurl from looking into the environment */
	curl_easy_setopt(easy, CURLOPT_PROXY,
					 pool->options.proxy != NULL ? pool->options.proxy : "");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) pool->options.connect_timeout);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "timpush/" TIMPUSH_VERSION);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, pool->headers);
	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_READFUNCTION, read_body);
	curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, seek_body);
	NEVER_REPEAT(easy);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, write_answer);
	curl_easy_setopt(easy, CURLOPT_VERBOSE, 1L);
	curl_easy_setopt(easy, CURLOPT_DEBUGFUNCTION, read_trace);
	return easy;
}

static void
free_call(HttpCall *call)
{
	free(call->body);
	free(call->answer);
	free(call);
}

static HttpCall *
new_call(HttpPool *pool, const char *body, size_t len, void *tag)
{
	HttpCall   *call = calloc(1, sizeof(HttpCall));

	if (call == NULL)
		return NULL;
	call->pool = pool;
	call->tag = tag;
	call->len = len;
	call->body = malloc(Max(len, 1));
	call->easy = pool->nidle > 0 ? pool->idle[--pool->nidle] : new_handle(pool);
	if (call->body == NULL || call->easy == NULL)
	{
		if (call->easy != NULL)
			curl_easy_cleanup(call->easy);
		free_call(call);
		return NULL;
	}
	memcpy(call->body, body, len);
	return call;
}

/* Start the call; false if libcurl refuses. */
static bool
start_call(HttpCall *call, const char *url)
{
	CURL	   *easy = call->easy;

	if (curl_easy_setopt(easy, CURLOPT_URL, url) != CURLE_OK)
		return false;
	curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN,
					 call->pool->http1 ? MAX_IDLE_SECONDS_HTTP1 : MAX_IDLE_SECONDS);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) call->len);
	curl_easy_setopt(easy, CURLOPT_READDATA, call);
	curl_easy_setopt(easy, CURLOPT_SEEKDATA, call);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
	curl_easy_setopt(easy, CURLOPT_DEBUGDATA, call);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, call->error);
	curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
	return curl_multi_add_handle(call->pool->multi, easy) == CURLM_OK;
}

bool
http_post(HttpPool *pool, const char *url, const char *body, size_t len,
		  void *tag)
{
	HttpCall   *call;
	bool		started;

	Assert(pool->in_flight < pool->options.max_in_flight);
	call = new_call(pool, body, len, tag);
	started = call != NULL && start_call(call, url);
	if (call != NULL && !started)
	{
		curl_easy_cleanup(call->easy);
		free_call(call);
	}
	if (started)
	{
		call->deadline = monotonic_us() + INT64CONST(1000) * pool->options.request_timeout;
		dlist_push_tail(&pool->running, &call->node);
		pool->in_flight++;
		pool->live++;
		in_flight++;
	}
	return started;
}

/* ------------------------------------------------------------------------
 * Waiting and finishing
 * ------------------------------------------------------------------------
 */

/* The peer's protocol decides how many connections make sense. */
static void
learn_protocol(HttpCall *call)
{
	long		version = 0;

	curl_easy_getinfo(call->easy, CURLINFO_HTTP_VERSION, &version);
	if (!call->pool->http1 && call->result == CURLE_OK &&
		(version == CURL_HTTP_VERSION_1_0 || version == CURL_HTTP_VERSION_1_1))
	{
		call->pool->http1 = true;
		set_connection_limit(call->pool);
	}
}

/* Has the connection ended before the call did? */
static bool
connection_ended(const HttpCall *call)
{
	return call->result == CURLE_SEND_ERROR || call->result == CURLE_RECV_ERROR ||
		call->result == CURLE_GOT_NOTHING || call->result == CURLE_HTTP2 ||
		call->result == CURLE_PARTIAL_FILE;
}

/*
 * A newer libcurl keeps a connection that was reset and does not look whether
 * it still stands if it has just been used, so that whatever went next would be
 * in doubt.  Calls that are on others may end there.
 */
static void
leave_connections(HttpPool *pool pg_attribute_unused())
{
#ifdef CURLMNWC_CLEAR_CONNS
	curl_multi_setopt(pool->multi, CURLMOPT_NETWORK_CHANGED, CURLMNWC_CLEAR_CONNS);
#endif
}

/*
 * Has the call met the end of a connection, and did its fate not depend on it?
 * A connection that served before may end at any time, and a new one serves.
 */
static bool
met_retired_connection(const HttpCall *call)
{
	long		opened = 0;

	if (!connection_ended(call))
		return false;
	curl_easy_getinfo(call->easy, CURLINFO_NUM_CONNECTS, &opened);
	return call->disowned || (call->pos == 0 && opened == 0);
}

/*
 * A peer that retires a connection is no failure: what it did not take from
 * there starts again.  False if the call has really ended.
 */
static bool
restart_call(HttpCall *call)
{
	if (call->result == CURLE_OK)
		return false;
	leave_stream(call);
	if (call->restarts > MAX_RESTARTS || !met_retired_connection(call))
		return false;
	call->disowned = false;
	call->answer_len = 0;
	call->error[0] = '\0';
	return curl_multi_add_handle(call->pool->multi, call->easy) == CURLM_OK;
}

/* libcurl is done with the call, or has to be. */
static void
end_call(HttpCall *call, CURLcode result)
{
	call->result = result;
	learn_protocol(call);
	curl_multi_remove_handle(call->pool->multi, call->easy);
	if (connection_ended(call))
		leave_connections(call->pool);
	if (restart_call(call))
		return;
	dlist_delete(&call->node);
	call->pool->in_flight--;
	in_flight--;
	if (result == CURLE_OK)
		call->pool->answers++;
	if (finished_last != NULL)
		finished_last->next = call;
	else
		finished_first = call;
	finished_last = call;
}

static void
collect_finished(HttpPool *pool)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool->multi, &left)) != NULL)
	{
		HttpCall   *call;
		CURLcode	result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &call);
		result = message->data.result;
		/* so says libcurl if others use the connection that ended */
		if (result == CURLE_OK && answer_status(call) == 0)
			result = CURLE_GOT_NOTHING;
		end_call(call, result);
	}
}

/* The pool's calls may all take equally long, so the oldest is due first. */
static HttpCall *
oldest_call(HttpPool *pool)
{
	return dlist_is_empty(&pool->running) ? NULL :
		dlist_head_element(HttpCall, node, &pool->running);
}

static bool
is_overdue(const HttpCall *call)
{
	return call != NULL && call->deadline <= monotonic_us();
}

static bool
any_overdue(void)
{
	for (HttpPool *pool = pools; pool != NULL; pool = pool->next)
	{
		if (is_overdue(oldest_call(pool)))
			return true;
	}
	return false;
}

static void
give_up_overdue(void)
{
	for (HttpPool *pool = pools; pool != NULL; pool = pool->next)
	{
		HttpCall   *call;

		while (is_overdue(call = oldest_call(pool)))
		{
			snprintf(call->error, sizeof(call->error),
					 "the request timed out after %d ms", pool->options.request_timeout);
			end_call(call, CURLE_OPERATION_TIMEDOUT);
		}
	}
}

static void
serve_sockets(const WaitEvent *events, int n)
{
	for (int i = 0; i < n; i++)
	{
		int			running;
		int			mask = 0;

		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (!(events[i].events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE)) ||
			events[i].fd >= nsockets || sockets[events[i].fd].pool == NULL)
			continue;
		if (events[i].events & WL_SOCKET_READABLE)
			mask |= CURL_CSELECT_IN;
		if (events[i].events & WL_SOCKET_WRITEABLE)
			mask |= CURL_CSELECT_OUT;
		curl_multi_socket_action(sockets[events[i].fd].pool->multi,
								 events[i].fd, mask, &running);
	}
}

/*
 * Call libcurl where its time has come, and take what has finished; returns
 * for how many pools it had.
 */
static int
serve_timers(void)
{
	int			n = 0;

	for (HttpPool *pool = pools; pool != NULL; pool = pool->next)
	{
		int			running;

		if (pool->deadline >= 0 && pool->deadline <= monotonic_us())
		{
			pool->deadline = -1;
			curl_multi_socket_action(pool->multi, CURL_SOCKET_TIMEOUT, 0, &running);
			n++;
		}
		collect_finished(pool);
		adjust_streams(pool);
	}
	return n;
}

/* Lowers *timeout, in milliseconds (-1: none), to the time that is left. */
static void
limit_timeout(long *timeout, int64 deadline, int64 now)
{
	long		left = deadline <= now ? 0 : (long) ((deadline - now + 999) / 1000);

	if (*timeout < 0 || left < *timeout)
		*timeout = left;
}

/* Milliseconds until the first timer, at most "timeout" (-1: no limit). */
static long
next_timeout(long timeout)
{
	int64		now = monotonic_us();

	if (finished_first != NULL)
		return 0;
	for (HttpPool *pool = pools; pool != NULL; pool = pool->next)
	{
		const HttpCall *call = oldest_call(pool);

		if (pool->deadline >= 0)
			limit_timeout(&timeout, pool->deadline, now);
		if (call != NULL)
			limit_timeout(&timeout, call->deadline, now);
	}
	return timeout;
}

/* Wait once and let libcurl work; returns how much happened. */
static int
turn(long timeout, uint32 wait_event)
{
	WaitEvent	events[MAX_EVENTS];
	int			n;

	sync_wait_set();
	n = WaitEventSetWait(wait_set, timeout, events, MAX_EVENTS, wait_event);
	enter_curl();
	serve_sockets(events, n);
	n += serve_timers();
	leave_curl();
	if (out_of_memory)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return n;
}

void
http_wait(long timeout, uint32 wait_event)
{
	(void) turn(next_timeout(timeout), wait_event);
	if (!any_overdue())
		return;
	for (int i = 0; i < MAX_LAST_TURNS && turn(0, wait_event) > 0; i++)
		;
	enter_curl();
	give_up_overdue();
	leave_curl();
}

/*
 * If libcurl took no byte of the body since the peer disowned all that went
 * before, nothing arrived that the API could have acted on.  Anything else
 * that has no answer is in doubt.
 */
static TransferEnd
transfer_end(const HttpCall *call)
{
	if (call->result == CURLE_OK)
		return TRANSFER_ANSWERED;
	return call->pos == 0 ? TRANSFER_NOT_SENT : TRANSFER_IN_DOUBT;
}

/*
 * Why there was no answer.  Of a proxy's address that it does not understand
 * libcurl repeats all, with the password.
 */
static const char *
transfer_error(const HttpCall *call)
{
	const char *proxy = call->pool->options.proxy;
	char		beginning[32];

	if (call->result == CURLE_OK)
		return NULL;
	if (call->error[0] == '\0')
		return curl_easy_strerror(call->result);
	if (proxy != NULL && strchr(proxy, '@') != NULL)
	{
		/* its end may have been cut off */
		strlcpy(beginning, proxy, sizeof(beginning));
		if (strstr(call->error, beginning) != NULL)
			return "libcurl does not understand the address of the proxy";
	}
	return call->error;
}

HttpCall *
http_finished(void **tag, Transfer *transfer)
{
	HttpCall   *call = finished_first;
	curl_off_t	retry_after = 0;

	if (call == NULL)
		return NULL;
	finished_first = call->next;
	if (finished_first == NULL)
		finished_last = NULL;

	curl_easy_getinfo(call->easy, CURLINFO_RETRY_AFTER, &retry_after);
	*tag = call->tag;
	transfer->end = transfer_end(call);
	transfer->http_status = (int) answer_status(call);
	transfer->retry_after = retry_after > 0 ? (int) Min(retry_after, PG_INT32_MAX) : -1;
	transfer->error = transfer_error(call);
	transfer->body = call->answer;
	transfer->body_len = call->answer_len;
	return call;
}

int
http_connections(const HttpCall *call)
{
	long		opened = 0;

	curl_easy_getinfo(call->easy, CURLINFO_NUM_CONNECTS, &opened);
	return (int) opened;
}

void
http_release(HttpCall *call)
{
	HttpPool   *pool = call->pool;

	curl_easy_setopt(call->easy, CURLOPT_DEBUGDATA, NULL);
	/* its signature may be forgotten while the handle waits */
	curl_easy_setopt(call->easy, CURLOPT_URL, NULL);
	/* libcurl remembers in the handle that a stream was refused, for too long */
	if (call->result == CURLE_OK && pool->nidle < pool->options.max_in_flight)
		pool->idle[pool->nidle++] = call->easy;
	else
		curl_easy_cleanup(call->easy);
	free_call(call);
	pool->live--;
	sweep_pool(pool);
}

int
http_in_flight(void)
{
	return in_flight;
}
