/* SPDX-License-Identifier: BSD-3-Clause */
#include "offload.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "common.h"

STAILQ_HEAD(offload_jobs, offload_job);

static struct {
	pthread_mutex_t lock; /* of everything here; held for a few instructions */
	pthread_cond_t work, idle;
	struct offload_jobs queue;
	pthread_t workers[OFFLOAD_WORKERS];
	unsigned n, busy, waiting; /* workers; those with a job; those without */
	unsigned queued;
	bool stopping;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER,
	   .work = PTHREAD_COND_INITIALIZER,
	   .idle = PTHREAD_COND_INITIALIZER,
	   .queue = STAILQ_HEAD_INITIALIZER(pool.queue) };

static void job_over(struct reactor *r, struct rmsg *msg)
{
	struct offload_job *job = dp_container_of(msg, struct offload_job, msg);

	job->done(r, job);
}

static struct offload_job *take(void)
{
	struct offload_job *job;

	while (!(job = STAILQ_FIRST(&pool.queue)) && !pool.stopping) {
		pool.waiting++;
		pthread_cond_wait(&pool.work, &pool.lock);
		pool.waiting--;
	}
	if (job) {
		STAILQ_REMOVE_HEAD(&pool.queue, link);
		pool.queued--;
	}
	return job;
}

static void *worker_main(void *arg)
{
	struct offload_job *job;

	pthread_mutex_lock(&pool.lock);
	while ((job = take())) {
		pool.busy++;
		pthread_mutex_unlock(&pool.lock);
		job->work(job);
		job->msg.fn = job_over;
		reactor_send(job->r, &job->msg); /* from here on it is its reactor's again */
		pthread_mutex_lock(&pool.lock);
		pool.busy--;
		if (!pool.busy && !pool.queued)
			pthread_cond_broadcast(&pool.idle);
	}
	pthread_mutex_unlock(&pool.lock);
	return NULL;
}

/* Under the lock. Workers take no signals, and run where the process may, not where the reactor that made them is bound. */
static void add_worker(void)
{
	sigset_t all, before;
	cpu_set_t cpus;
	int rc;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* a fault of the thread's own access */
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&pool.workers[pool.n], NULL, worker_main, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return;
	if (sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0) /* of the main thread */
		pthread_setaffinity_np(pool.workers[pool.n], sizeof(cpus), &cpus);
	pthread_setname_np(pool.workers[pool.n], "offload");
	pool.n++;
}

bool offload_submit(struct reactor *r, struct offload_job *job)
{
	bool ok;

	job->r = r;
	pthread_mutex_lock(&pool.lock);
	if (pool.queued >= pool.waiting && pool.n < OFFLOAD_WORKERS)
		add_worker();
	ok = pool.n > 0;
	if (ok) {
		STAILQ_INSERT_TAIL(&pool.queue, job, link);
		pool.queued++;
		pthread_cond_signal(&pool.work);
	}
	pthread_mutex_unlock(&pool.lock);
	return ok;
}

bool offload_cancel(struct offload_job *job)
{
	struct offload_job *queued;

	pthread_mutex_lock(&pool.lock);
	STAILQ_FOREACH(queued, &pool.queue, link)
		if (queued == job) {
			STAILQ_REMOVE(&pool.queue, job, offload_job, link);
			pool.queued--;
			break;
		}
	if (!pool.busy && !pool.queued)
		pthread_cond_broadcast(&pool.idle);
	pthread_mutex_unlock(&pool.lock);
	return queued != NULL;
}

void offload_drain(void)
{
	pthread_mutex_lock(&pool.lock);
	while (pool.busy || pool.queued)
		pthread_cond_wait(&pool.idle, &pool.lock);
	pthread_mutex_unlock(&pool.lock);
}

void offload_stop(void)
{
	offload_drain();
	pthread_mutex_lock(&pool.lock);
	pool.stopping = true;
	pthread_cond_broadcast(&pool.work);
	pthread_mutex_unlock(&pool.lock);
	for (unsigned i = 0; i < pool.n; i++)
		pthread_join(pool.workers[i], NULL);
	pool.n = 0;
	pool.stopping = false;
}
