/*-------------------------------------------------------------------------
 *
 * server.h
 *	  Options of a server and of its user mapping, as a checked struct.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_SERVER_H
#define TIMPUSH_SERVER_H

#include "postgres.h"

#include "nodes/pg_list.h"

typedef struct ServerOptions
{
	Oid			oid;
	char		name[NAMEDATALEN];
	uint32		sdkappid;
	char	   *host;			/* name or name:port */
	double		requests_per_second;	/* 0: no limit */
	double		accounts_per_second;	/* 0: no limit */
	int			accounts_per_request;	/* 1..500 */
	int			max_in_flight;
	int			connect_timeout;	/* milliseconds */
	int			request_timeout;	/* milliseconds */
	int			max_unknown_resends;	/* -1: no bound */
	char	   *ca_file;		/* NULL: the system's store */
	char	   *proxy;			/* NULL: none */
	bool		has_mapping;	/* a user mapping FOR PUBLIC exists */
	char	   *identifier;		/* UTF-8 */
	char	   *secret_key;		/* exactly one of these three */
	char	   *secret_key_file;
	char	   *usersig;
	bool		owner_reads_files;	/* else secret_key_file is not for him */
	int			usersig_lifetime;	/* seconds */
	uint64		version;		/* differs after any ALTER of either object */
} ServerOptions;

/* All servers of this wrapper in the database, in the order of their names. */
extern List *server_list_all(void);

/* One server; allocated in the current context.  Raises if it is gone. */
extern ServerOptions *server_load(Oid serverid);

/*
 * Keep the server from being dropped or renamed until the transaction ends;
 * undefined_object if it has just been.
 */
extern void server_keep(Oid serverid);

/* Clears what the options hold of secrets, before their memory is freed. */
extern void server_wipe(ServerOptions *server);

/* Accounts that a request of the server may carry by its own options. */
extern int	server_request_size(const ServerOptions *server);

/* Server that "name" means, or the default one if it is NULL; raises. */
extern Oid	server_resolve(const char *name);

/* Its name as the catalog has it. */
extern void server_get_name(Oid serverid, Name name);

/* Raises unless the role has USAGE on the server. */
extern void server_check_usage(Oid serverid, Oid roleid);

/*
 * A counter that changes whenever a server, a user mapping or the wrapper
 * may have changed; to be compared for equality only.
 */
extern uint64 server_generation(void);

/*
 * The secret key, from the option or the file, in a fresh palloc'd buffer
 * that the caller clears with server_free_key().  If it cannot be had:
 * returns NULL and puts a sentence about why into *problem.
 */
extern char *server_read_key(const ServerOptions *server, size_t *len,
							 char **problem);
extern void server_free_key(char *key, size_t len);

#endif							/* TIMPUSH_SERVER_H */
