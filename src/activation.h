/*-------------------------------------------------------------------------
 *
 * activation.h
 *	  Where the database's pushes were enqueued.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_ACTIVATION_H
#define TIMPUSH_ACTIVATION_H

#include "postgres.h"

/*
 * Note in push_activation, unless there is such a note, that pushes are
 * enqueued in this cluster and database; "outbox" is push_outbox.  In a
 * transaction, with any rights.
 */
extern void activation_ensure(Oid outbox);

#endif							/* TIMPUSH_ACTIVATION_H */
