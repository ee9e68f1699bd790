// SPDX-License-Identifier: GPL-2.0
/*
 * Reads that are done later.
 *
 *	READ --> posted -- bytes arrive, the peer ends --> done -- WAIT --> gone
 *	           '------ CANCEL, CLOSE, the file is closed ------'
 *
 * The socket's wait queue tells when something arrives, in a context in which nothing can be
 * done about it: a worker takes what has come. It holds the socket, so that whoever closes the
 * device's file need not wait for it; unloading the module does.
 *
 * A worker has neither the program's memory, nor its credentials, nor its limits, nor its memory
 * cgroup. So memory is pinned when the read is posted, what a file's pages take is charged to the
 * program's cgroup, and a file is written with the credentials and up to the
 * RLIMIT_FSIZE of then.
 */
#include <linux/bvec.h>
#include <linux/cred.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "io.h"

struct read {
	struct list_head list;
	u32 number;
	u32 flags;
	int error;
	/* Somebody waits to give it up. */
	bool cancelled;
	u64 length;
	u64 done;
	const struct cred *cred;
	/* Who pays for pages that a file gets. */
	struct mem_cgroup *memcg;

	/* A file, or */
	struct file *file;
	loff_t pos;
	u64 limit;
	/* pages of this memory, to which they are charged. */
	struct mm_struct *mm;
	struct page **pages;
	struct bio_vec *parts;
	unsigned int page_count;
};

static struct workqueue_struct *workers;

/* === Lives of reads === */

/* Nothing is written to where it goes any more. */
static void let_go(struct read *read)
{
	if (read->file)
		fput(read->file);
	read->file = NULL;
	if (read->pages) {
		unpin_user_pages_dirty_lock(read->pages, read->page_count, true);
		account_locked_vm(read->mm, read->page_count, false);
		mmdrop(read->mm);
		kvfree(read->pages);
		kvfree(read->parts);
	}
	read->pages = NULL;
}

static void free_read(struct read *read)
{
	let_go(read);
	put_cred(read->cred);
	mem_cgroup_put(read->memcg);
	kfree(read);
}

static void free_all(struct list_head *reads)
{
	struct read *read, *next;

	list_for_each_entry_safe(read, next, reads, list)
		free_read(read);
}

void gridos_reads_free(struct gridos_socket *socket)
{
	free_all(&socket->posted);
	free_all(&socket->done);
}

/* === Where a read goes === */

static int pin(struct read *read, u64 bytes)
{
	unsigned long address = bytes, offset = offset_in_page(address);
	unsigned int count = DIV_ROUND_UP(offset + read->length, PAGE_SIZE);
	size_t left = read->length;
	int err, got, i;

	if (bytes != address || !access_ok((void __user *)address, read->length))
		return -EFAULT;
	read->pages = kvmalloc_array(count, sizeof(*read->pages), GFP_KERNEL_ACCOUNT);
	read->parts = kvmalloc_array(count, sizeof(*read->parts), GFP_KERNEL_ACCOUNT);
	err = -ENOMEM;
	if (!read->pages || !read->parts)
		goto no_memory;
	err = account_locked_vm(current->mm, count, true);
	if (err)
		goto no_memory;
	got = pin_user_pages_fast(address & PAGE_MASK, count, FOLL_WRITE | FOLL_LONGTERM,
				  read->pages);
	if (got != count)
		goto not_pinned;
	for (i = 0; i < count; i++) {
		size_t part = min(left, PAGE_SIZE - offset);

		read->parts[i] = (struct bio_vec){
			.bv_page = read->pages[i], .bv_offset = offset, .bv_len = part,
		};
		left -= part;
		offset = 0;
	}
	read->page_count = count;
	read->mm = current->mm;
	mmgrab(read->mm);
	return 0;
not_pinned:
	if (got > 0)
		unpin_user_pages(read->pages, got);
	account_locked_vm(current->mm, count, false);
	err = got < 0 ? got : -EFAULT;
no_memory:
	kvfree(read->pages);
	kvfree(read->parts);
	read->pages = NULL;
	return err;
}

static int aim(struct read *read, const struct gridos_io *args)
{
	struct file *file;

	if (args->file == -1) {
		if (args->offset)
			return -EINVAL;
		if (args->length > GRIDOS_IO_READ_MAX)
			return -EMSGSIZE;
		return args->length ? pin(read, args->bytes) : 0;
	}
	if (args->offset < 0 || args->bytes)
		return -EINVAL;
	file = gridos_file_get(args->file, FMODE_WRITE);
	if (IS_ERR(file))
		return PTR_ERR(file);
	read->file = file;
	read->pos = args->offset;
	read->limit = rlimit(RLIMIT_FSIZE) == RLIM_INFINITY ? U64_MAX : rlimit(RLIMIT_FSIZE);
	return 0;
}

/* === The worker === */

static ssize_t step(struct gridos_socket *socket, struct read *read)
{
	u64 left = read->length - read->done;
	struct iov_iter to;

	if (read->file)
		return gridos_step_to_file(socket, read->file, &read->pos,
					   min_t(u64, left, GRIDOS_IO_STEP), read->limit);
	iov_iter_bvec(&to, ITER_DEST, read->parts, read->page_count, read->length);
	iov_iter_advance(&to, read->done);
	return gridos_step_to_iter(socket, &to);
}

static void finish(struct gridos_socket *socket, struct read *read, int error)
{
	lockdep_assert_held(&socket->receiving);
	let_go(read);
	read->error = error;
	spin_lock_bh(&socket->lock);
	list_move_tail(&read->list, &socket->done);
	spin_unlock_bh(&socket->lock);
	wake_up_all(&socket->waiters);
}

static struct read *first_posted(struct gridos_socket *socket)
{
	struct read *read;

	spin_lock_bh(&socket->lock);
	read = list_first_entry_or_null(&socket->posted, struct read, list);
	spin_unlock_bh(&socket->lock);
	return read;
}

static bool is_given_up(const struct gridos_socket *socket, const struct read *read)
{
	return READ_ONCE(socket->closed) || READ_ONCE(read->cancelled);
}

/* Goes on with one read; false if it has to wait for more. */
static bool serve(struct gridos_socket *socket, struct read *read)
{
	const struct cred *own = override_creds(read->cred);
	struct mem_cgroup *before = set_active_memcg(read->memcg);
	bool goes_on = true;
	ssize_t moved = 0;

	while (read->done < read->length) {
		moved = is_given_up(socket, read) ? -ECANCELED : step(socket, read);
		if (moved <= 0)
			break;
		read->done += moved;
		gridos_buffers_adapt(socket);
		cond_resched();
	}
	set_active_memcg(before);
	revert_creds(own);
	if (moved == -EAGAIN && !(read->done && read->flags & GRIDOS_IO_SOME))
		goes_on = false;
	else
		finish(socket, read, moved < 0 && moved != -EAGAIN ? moved : 0);
	return goes_on;
}

static void cancel_posted(struct gridos_socket *socket)
{
	struct read *read;

	while ((read = first_posted(socket)))
		finish(socket, read, -ECANCELED);
}

static void work(struct work_struct *work)
{
	struct gridos_socket *socket = container_of(work, struct gridos_socket, work);
	struct read *read;

	mutex_lock(&socket->receiving);
	while ((read = first_posted(socket)) && serve(socket, read))
		;
	mutex_unlock(&socket->receiving);
	gridos_socket_put(socket);
}

/* From anywhere; whoever calls holds the socket. */
static void have_work(struct gridos_socket *socket)
{
	gridos_socket_hold(socket);
	if (!queue_work(workers, &socket->work))
		gridos_socket_put(socket);
}

/* Under the lock of the socket's wait queue. */
static int arrived(struct wait_queue_entry *entry, unsigned int mode, int sync, void *key)
{
	struct gridos_socket *socket = container_of(entry, struct gridos_socket, arrival);
	__poll_t events = key_to_poll(key);

	if (!list_empty_careful(&socket->posted) &&
	    (!events || events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		have_work(socket);
	return 0;
}

/* === Operations === */

bool gridos_receive_begin(struct gridos_socket *socket)
{
	bool may;

	spin_lock_bh(&socket->lock);
	may = list_empty(&socket->posted) &&
	      !test_and_set_bit(GRIDOS_RECEIVES, &socket->busy);
	spin_unlock_bh(&socket->lock);
	return may;
}

void gridos_receive_end(struct gridos_socket *socket)
{
	clear_bit(GRIDOS_RECEIVES, &socket->busy);
}

/* It may be done, and waited for by another thread, before this comes back. */
static int post(struct gridos_socket *socket, struct read *read, u32 *number)
{
	bool arms = false;
	int err = 0;

	spin_lock_bh(&socket->lock);
	if (socket->closed) {
		err = -ECANCELED;
	} else if (test_bit(GRIDOS_RECEIVES, &socket->busy)) {
		err = -EBUSY;
	} else if (socket->reads >= GRIDOS_IO_READS_MAX) {
		err = -EDQUOT;
	} else {
		socket->reads++;
		/* Never 0, which is any. */
		socket->last_read = socket->last_read % INT_MAX + 1;
		read->number = socket->last_read;
		*number = read->number;
		list_add_tail(&read->list, &socket->posted);
		arms = !socket->armed;
		socket->armed = true;
		/* With the lock, or it may have been closed before the entry is there. */
		if (arms)
			add_wait_queue(sk_sleep(socket->sock->sk), &socket->arrival);
	}
	spin_unlock_bh(&socket->lock);
	return err;
}

static int begin(struct gridos_socket *socket, struct gridos_io *args)
{
	struct read *read = kzalloc(sizeof(*read), GFP_KERNEL_ACCOUNT);
	int err;

	if (!read)
		return -ENOMEM;
	INIT_LIST_HEAD(&read->list);
	read->flags = args->flags;
	read->length = args->length;
	read->cred = get_current_cred();
	read->memcg = get_mem_cgroup_from_mm(current->mm);
	err = aim(read, args);
	if (!err)
		err = post(socket, read, &args->read);
	if (err) {
		free_read(read);
		return err;
	}
	have_work(socket);
	return 0;
}

int gridos_io_read(struct file *file, struct gridos_io *args)
{
	struct gridos_socket *socket;
	int err;

	if (args->flags & ~GRIDOS_IO_SOME || args->timeout_ms || args->read || args->done)
		return -EINVAL;
	socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(socket))
		return PTR_ERR(socket);
	err = begin(socket, args);
	gridos_socket_put(socket);
	return err;
}

static struct read *find(struct list_head *reads, u32 number)
{
	struct read *read;

	list_for_each_entry(read, reads, list) {
		if (!number || read->number == number)
			return read;
	}
	return NULL;
}

/* Takes one that is done: EAGAIN if it is not, ENOENT if there is none. */
static int take_done(struct gridos_socket *socket, u32 number, struct read **taken)
{
	int err = 0;

	spin_lock_bh(&socket->lock);
	*taken = find(&socket->done, number);
	if (*taken) {
		list_del_init(&(*taken)->list);
		socket->reads--;
	} else {
		err = find(&socket->posted, number) ? -EAGAIN : -ENOENT;
	}
	spin_unlock_bh(&socket->lock);
	return err;
}

/* Ends one that is posted, when the worker is not at it. */
static int cancel(struct gridos_socket *socket, u32 number)
{
	struct read *read;

	/* Bytes may come all the time: the worker is told not to go on. */
	spin_lock_bh(&socket->lock);
	read = find(&socket->done, number) ? NULL : find(&socket->posted, number);
	if (read)
		WRITE_ONCE(read->cancelled, true);
	spin_unlock_bh(&socket->lock);
	if (!read)
		return 0;
	if (mutex_lock_interruptible(&socket->receiving))
		return -EINTR;
	spin_lock_bh(&socket->lock);
	read = find(&socket->done, number) ? NULL : find(&socket->posted, number);
	spin_unlock_bh(&socket->lock);
	if (read)
		finish(socket, read, -ECANCELED);
	mutex_unlock(&socket->receiving);
	return 0;
}

static int wait(struct gridos_socket *socket, struct gridos_io_wait *args, struct read **taken)
{
	long left = args->flags & GRIDOS_IO_NOWAIT ? 0 : gridos_patience(args->timeout_ms);
	int err = 0;

	if (args->flags & GRIDOS_IO_CANCEL)
		err = cancel(socket, args->read);
	if (err)
		return err;
	err = take_done(socket, args->read, taken);
	if (err != -EAGAIN || !left)
		return err;
	left = wait_event_interruptible_timeout(socket->waiters,
						(err = take_done(socket, args->read, taken)) !=
						-EAGAIN, left);
	if (err != -EAGAIN)
		return err;
	return left < 0 ? -EINTR : -ETIMEDOUT;
}

int gridos_io_wait(struct file *file, struct gridos_io_wait *args)
{
	struct gridos_socket *socket;
	struct read *read;
	int err;

	if (args->flags & ~(GRIDOS_IO_NOWAIT | GRIDOS_IO_CANCEL) || args->error || args->done)
		return -EINVAL;
	socket = gridos_socket_get(file, args->socket);
	if (IS_ERR(socket))
		return PTR_ERR(socket);
	err = wait(socket, args, &read);
	if (!err) {
		args->read = read->number;
		args->error = read->error;
		args->done = read->done;
		free_read(read);
	}
	gridos_socket_put(socket);
	return err;
}

/* === Sockets === */

void gridos_reads_setup(struct gridos_socket *socket)
{
	spin_lock_init(&socket->lock);
	INIT_LIST_HEAD(&socket->posted);
	INIT_LIST_HEAD(&socket->done);
	init_waitqueue_head(&socket->waiters);
	init_waitqueue_func_entry(&socket->arrival, arrived);
	INIT_WORK(&socket->work, work);
}

void gridos_reads_stop(struct gridos_socket *socket, bool may_wait)
{
	bool locked;

	spin_lock_bh(&socket->lock);
	if (socket->armed)
		remove_wait_queue(sk_sleep(socket->sock->sk), &socket->arrival);
	socket->armed = false;
	spin_unlock_bh(&socket->lock);
	if (may_wait)
		locked = !mutex_lock_killable(&socket->receiving);
	else
		locked = mutex_trylock(&socket->receiving);
	if (locked) {
		cancel_posted(socket);
		mutex_unlock(&socket->receiving);
	} else {
		have_work(socket);
	}
	wake_up_all(&socket->waiters);
}

int gridos_reads_init(void)
{
	/* As many as may be at work: one that a file system holds up is in nobody's way. */
	workers = alloc_workqueue("gridos_io", WQ_UNBOUND, WQ_MAX_ACTIVE);
	return workers ? 0 : -ENOMEM;
}

/* Waits for those who are at it. */
void gridos_reads_exit(void)
{
	destroy_workqueue(workers);
}
