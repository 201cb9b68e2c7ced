/*-------------------------------------------------------------------------
 *
 * http.h
 *	  Requests in flight: libcurl's multi interface on a WaitEventSet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_HTTP_H
#define TIMPUSH_HTTP_H

#include "postgres.h"

#include "response.h"

/* Connections to one endpoint. */
typedef struct HttpPool HttpPool;

/* One request in flight, or finished and not yet released. */
typedef struct HttpCall HttpCall;

typedef struct HttpOptions
{
	int			connect_timeout;	/* milliseconds */
	int			request_timeout;	/* milliseconds, the whole of it */
	int			max_in_flight;
	const char *ca_file;		/* NULL: the system's store */
	const char *proxy;			/* NULL: none */
} HttpOptions;

/* Once in the process, after fork. */
extern void http_init(void);

/* A pool without connections; NULL if memory is short.  Copies the options. */
extern HttpPool *http_pool_create(const HttpOptions *options);

/* Forget the pool: it goes away when the last of its calls is released. */
extern void http_pool_retire(HttpPool *pool);

/*
 * POST "body" to "url"; both are copied.  "tag" comes back with the result.
 * False if memory is short: nothing has left then.
 */
extern bool http_post(HttpPool *pool, const char *url, const char *body,
					  size_t len, void *tag);

/*
 * Wait until the latch is set, something has happened on a connection, or
 * "timeout" milliseconds have passed (-1: no limit); serve the connections.
 * Ends the process if the postmaster is gone.
 */
extern void http_wait(long timeout, uint32 wait_event);

/*
 * The next finished call, or NULL.  Fills *transfer, whose strings live
 * until http_release() of the call.
 */
extern HttpCall *http_finished(void **tag, Transfer *transfer);
extern void http_release(HttpCall *call);

/* How many connections were opened for a finished call. */
extern int	http_connections(const HttpCall *call);

/* How many calls are in flight in all pools. */
extern int	http_in_flight(void);

#endif							/* TIMPUSH_HTTP_H */
