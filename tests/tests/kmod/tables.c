/* Tables: what is published is what is read, whole, also while it is replaced. */
#define _GNU_SOURCE
#include "grid.h"

#define MANY 1000

static struct gridos_node nodes[MANY];

static int publish(int fd, uint32_t table, const void *records, uint32_t record_size, uint32_t count)
{
	struct gridos_publish args = { .size = sizeof(args), .table = table, .records = (uintptr_t)records,
				       .record_size = record_size, .count = count };

	return ioctl(fd, GRIDOS_IOC(GRIDOS_OP_PUBLISH), &args);
}

static int list(int fd, void *records, uint32_t record_size, uint64_t from, uint32_t *count)
{
	struct gridos_list args = { .size = sizeof(args), .record_size = record_size, .records = (uintptr_t)records,
				    .from = from, .count = *count };
	int got = ioctl(fd, GRIDOS_IOC(GRIDOS_OP_NODES), &args);

	*count = args.count;
	return got;
}

static void fill(uint32_t generation)
{
	for (int i = 0; i < MANY; i++) {
		/* Every third comes and goes. */
		nodes[i] = (struct gridos_node){ .number = 3 * i + 1 + (i % 3 == 2 ? generation % 2 : 0),
						 .state = generation % 4, .cpus = generation, .cpus_free = generation,
						 .memory = generation, .memory_free = generation };
		snprintf(nodes[i].name, sizeof(nodes[i].name), "node%u", generation);
	}
}

static void published(void)
{
	struct gridos_node got[8], three[3] = { { .number = 1, .cpus = 2500, .cpus_free = 1, .memory = 1 << 30, .name = "one" },
						{ .number = 7, .state = GRIDOS_NODE_DOWN },
						{ .number = GRIDOS_NODE_MAX, .name = "last" } };
	int fd = daemon_fd();
	uint32_t count = 8;

	gives(0, publish(fd, GRIDOS_OP_NODES, three, sizeof(*three), 3));
	gives(0, list(fd, got, sizeof(*got), 0, &count));
	must(count == 3 && !memcmp(got, three, sizeof(three)));
	count = 1;
	gives(0, list(fd, got, sizeof(*got), 2, &count));
	must(count == 1 && got[0].number == 7);
	count = 8;
	gives(0, list(fd, got, sizeof(*got), UINT64_MAX, &count));
	must(count == 0);
	must(!strcmp(proc_text("nodes", 4096), "node\tstate\tcpus\tfree\tmemory\tfree\tname\n"
					       "1\tup\t2.500\t0.001\t1073741824\t0\tone\n"
					       "7\tdown\t0.000\t0.000\t0\t0\t-\n"
					       "2147483647\tup\t0.000\t0.000\t0\t0\tlast\n"));
	gives(EFAULT, publish(fd, GRIDOS_OP_NODES, (void *)8, sizeof(*three), 3));
	count = 3;
	gives(EFAULT, list(fd, (void *)8, sizeof(*got), 0, &count));
	gives(EINVAL, publish(fd, GRIDOS_OP_CALL, three, sizeof(*three), 3));
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three, sizeof(*three), GRIDOS_NODES_MAX + 1));
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three, 0, 3));
	/* Not ascending, without a number, without an end of the name: none replaces what there is. */
	three[1].number = 1;
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three, sizeof(*three), 3));
	three[1].number = 0;
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three + 1, sizeof(*three), 1));
	three[1].number = 1u << 31;
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three + 1, sizeof(*three), 1));
	three[1].number = 1;
	three[1].state = 4;
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three + 1, sizeof(*three), 1));
	three[1].state = 0;
	memset(three[1].name, 'a', sizeof(three[1].name));
	gives(EINVAL, publish(fd, GRIDOS_OP_NODES, three + 1, sizeof(*three), 1));
	count = 8;
	gives(0, list(fd, got, sizeof(*got), 0, &count));
	must(count == 3 && got[1].number == 7);
	gives(0, publish(fd, GRIDOS_OP_NODES, NULL, sizeof(*three), 0));
	must(!strcmp(proc_text("nodes", 4096), "node\tstate\tcpus\tfree\tmemory\tfree\tname\n"));
}

/* Programs and modules of different age. */
static void extensible(void)
{
	struct {
		struct gridos_node node;
		uint64_t later;
	} newer[2] = { { .node.number = 1 }, { .node.number = 2 } }, got[2];
	struct {
		struct gridos_version known;
		uint32_t later;
	} version = { .known.size = sizeof(version) };
	int fd = daemon_fd();
	uint32_t count = 2;

	gives(0, publish(fd, GRIDOS_OP_NODES, newer, sizeof(*newer), 2));
	memset(got, 0xff, sizeof(got));
	gives(0, list(fd, got, sizeof(*got), 0, &count));
	must(count == 2 && !memcmp(got, newer, sizeof(newer)));
	newer[1].later = 1;
	gives(E2BIG, publish(fd, GRIDOS_OP_NODES, newer, sizeof(*newer), 2));
	count = 2;
	gives(EINVAL, list(fd, got, sizeof(struct gridos_node) - 1, 0, &count));
	gives(E2BIG, list(fd, got, 4097, 0, &count));

	gives(0, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	must(version.known.version == GRIDOS_UAPI_VERSION && version.known.size == sizeof(version));
	version.later = 1;
	gives(E2BIG, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	version.known.size = sizeof(version.known) - 1;
	gives(EINVAL, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	version.known.size = 4097;
	gives(E2BIG, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), &version));
	gives(EFAULT, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_VERSION), NULL));
	gives(ENOTTY, ioctl(fd, GRIDOS_IOC(0), &version));
	gives(ENOTTY, ioctl(fd, GRIDOS_IOC(GRIDOS_OP_CANCEL), &version));
	gives(ENOTTY, ioctl(fd, _IOWR(GRIDOS_IOC_MAGIC, GRIDOS_OP_VERSION, struct gridos_version), &version));
}

static void publishes(void *data)
{
	for (uint32_t generation = 1;; generation++) {
		fill(generation);
		gives(0, publish(*(int *)data, GRIDOS_OP_NODES, nodes, sizeof(*nodes), MANY));
	}
}

/* Each record is of one generation, they ascend, and what is there all the time is not left out. */
static void replaced(void)
{
	int fd = daemon_fd();
	pid_t publisher;

	fill(0);
	gives(0, publish(fd, GRIDOS_OP_NODES, nodes, sizeof(*nodes), MANY));
	publisher = spawn(publishes, &fd);
	for (int turn = 0; turn < 20; turn++) {
		const char *text = proc_text("nodes", 97 + turn * 200);
		unsigned int last = 0, staying = 0;
		char *line;

		for (line = strtok(strchr(text, '\n'), "\n"); line; line = strtok(NULL, "\n")) {
			unsigned int number, cpus, thousandths, free, free_thousandths, name;
			unsigned long long memory, memory_free;
			char state[16];

			must(sscanf(line, "%u\t%15s\t%u.%u\t%u.%u\t%llu\t%llu\tnode%u", &number, state, &cpus, &thousandths,
				    &free, &free_thousandths, &memory, &memory_free, &name) == 9);
			must(number > last);
			must(memory == name && memory_free == name && cpus * 1000 + thousandths == name);
			must(free * 1000 + free_thousandths == name);
			last = number;
			staying += (number - 1) / 3 % 3 != 2;
		}
		must(staying == MANY - MANY / 3);
	}
	kill(publisher, SIGKILL);
}

static const struct scenario scenarios[] = {
	{ "published", published }, { "extensible", extensible }, { "replaced", replaced },
};

int main(void)
{
	return run(scenarios, sizeof(scenarios) / sizeof(*scenarios));
}
