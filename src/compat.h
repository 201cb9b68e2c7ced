/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between the PostgreSQL versions that timpush builds with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_COMPAT_H
#define TIMPUSH_COMPAT_H

/*
 * Semantic actions of the JSON parser return an error type since 16.  Such an
 * action is declared JSON_ACTION and ends with JSON_ACTION_DONE.
 */
#if PG_VERSION_NUM >= 160000
#define JSON_ACTION			JsonParseErrorType
#define JSON_ACTION_DONE	return JSON_SUCCESS
#else
#define JSON_ACTION			void
#define JSON_ACTION_DONE	return
#endif

/* A lexer over UTF-8 that hands out de-escaped strings, and its end. */
#if PG_VERSION_NUM >= 170000
#define json_lex_begin(json, len) \
	makeJsonLexContextCstringLen(NULL, (json), (len), PG_UTF8, true)
#define json_lex_end(lex)	freeJsonLexContext(lex)
#else
#define json_lex_begin(json, len) \
	makeJsonLexContextCstringLen((json), (int) (len), PG_UTF8, true)
#define json_lex_end(lex) \
	do { \
		pfree((lex)->strval->data); \
		pfree((lex)->strval); \
		pfree(lex); \
	} while (0)
#endif

/* Privilege checks go by catalog since 16. */
#if PG_VERSION_NUM >= 160000
#define server_usage_aclcheck(server, role) \
	object_aclcheck(ForeignServerRelationId, (server), (role), ACL_USAGE)
#define server_ownercheck(server, role) \
	object_ownercheck(ForeignServerRelationId, (server), (role))
#define database_ownercheck(database, role) \
	object_ownercheck(DatabaseRelationId, (database), (role))
#else
#define server_usage_aclcheck(server, role) \
	pg_foreign_server_aclcheck((server), (role), ACL_USAGE)
#define server_ownercheck(server, role) \
	pg_foreign_server_ownercheck((server), (role))
#define database_ownercheck(database, role) \
	pg_database_ownercheck((database), (role))
#endif

/* What an interrupted DROP DATABASE leaves is marked since 15.4 and its like. */
#ifdef DATCONNLIMIT_INVALID_DB
#define database_is_dropped_halfway(form) \
	((form)->datconnlimit == DATCONNLIMIT_INVALID_DB)
#else
#define database_is_dropped_halfway(form)	false
#endif

/* A wait set belongs to a resource owner since 17; ours to the process. */
#if PG_VERSION_NUM >= 170000
#define create_wait_set(nevents)	CreateWaitEventSet(NULL, (nevents))
#else
#define create_wait_set(nevents) \
	CreateWaitEventSet(TopMemoryContext, (nevents))
#endif

/* All index entries of a new row; more can be asked for since 16. */
#if PG_VERSION_NUM >= 160000
#define insert_index_tuples(target, slot, estate) \
	((void) ExecInsertIndexTuples((target), (slot), (estate), false, false, \
								  NULL, NIL, false))
#else
#define insert_index_tuples(target, slot, estate) \
	((void) ExecInsertIndexTuples((target), (slot), (estate), false, false, \
								  NULL, NIL))
#endif

/* The sequence of an identity column: by its table's entry since 17. */
#if PG_VERSION_NUM >= 170000
#define identity_sequence(rel, column) \
	getIdentitySequence((rel), (column), false)
#else
#define identity_sequence(rel, column) \
	getIdentitySequence(RelationGetRelid(rel), (column), false)
#endif

/* The number of the current transaction in this process moved in 17. */
#if PG_VERSION_NUM >= 170000
#define MyLocalTransactionId	(MyProc->vxid.lxid)
#else
#define MyLocalTransactionId	(MyProc->lxid)
#endif

/* The setting transaction_timeout is new in 17. */
#define HAVE_TRANSACTION_TIMEOUT	(PG_VERSION_NUM >= 170000)

/* Shared memory is asked for in a hook since 15, while we are loaded before. */
#if PG_VERSION_NUM >= 150000
#define hook_shmem_request(prev, request) \
	((prev) = shmem_request_hook, shmem_request_hook = (request))
#else
typedef void (*shmem_request_hook_type) (void);
#define hook_shmem_request(prev, request)	((prev) = NULL, (request) ())
#endif

/* Settings under our prefix that do not exist are refused since 15. */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix)	EmitWarningsOnPlaceholders(prefix)
#endif

/* What a check hook leaves for the assign hook is guc.c's memory since 16. */
#if PG_VERSION_NUM >= 160000
#define guc_extra(size)	guc_malloc(LOG, (size))
#else
#define guc_extra(size)	malloc(size)
#endif

/* A random number in [0,1): the generator is another one since 15. */
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define random_fraction()	pg_prng_double(&pg_global_prng_state)
#else
#define random_fraction()	(random() / (MAX_RANDOM_VALUE + 1.0))
#endif

#endif							/* TIMPUSH_COMPAT_H */
