/* Makes calls of the C library fail for files under a path, as on file systems that do not support them:
 *     LD_PRELOAD=refusing.so UNDER=/folder REFUSE="fchmod=1 pread64=5@3 open64=17@0-1 nolinks=0"
 * NAME=ERRNO@FROM-TO: the calls numbered FROM to TO-1 fail; by default all. "nolinks": the link count of files is 0.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int refused(const char *name, const char *path, int *count)
{
	const char *under = getenv("UNDER"), *rules = getenv("REFUSE");
	if (!under || !rules || !path || strncmp(path, under, strlen(under)))
		return 0;
	for (const char *rule = rules; rule; rule = strchr(rule, ' '), rule = rule ? rule + 1 : rule) {
		size_t size = strlen(name);
		if (strncmp(rule, name, size) || rule[size] != '=')
			continue;
		int number = 0, from = 0, to = 1 << 30;
		sscanf(rule + size + 1, "%d@%d-%d", &number, &from, &to);
		int now = (*count)++;
		if (now < from || now >= to)
			return 0;
		errno = number;
		return 1;
	}
	return 0;
}

static int refused_of(const char *name, int descriptor, int *count)
{
	char link[64], path[4096];
	snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
	ssize_t size = readlink(link, path, sizeof path - 1);
	if (size < 0)
		return 0;
	path[size] = 0;
	return refused(name, path, count);
}

#define ON_DESCRIPTOR(type, name, parameters, arguments)   \
	type name parameters                                   \
	{                                                      \
		static int count;                                  \
		REAL(name);                                        \
		return refused_of(#name, fd, &count) ? -1 : real arguments; \
	}

#define ON_PATH(type, name, parameters, arguments)         \
	type name parameters                                   \
	{                                                      \
		static int count;                                  \
		REAL(name);                                        \
		return refused(#name, path, &count) ? (type)-1 : real arguments; \
	}

ON_DESCRIPTOR(int, fchmod, (int fd, mode_t mode), (fd, mode))
ON_DESCRIPTOR(int, fchown, (int fd, uid_t owner, gid_t group), (fd, owner, group))
ON_DESCRIPTOR(int, fsync, (int fd), (fd))
ON_DESCRIPTOR(int, flock, (int fd, int what), (fd, what))
ON_DESCRIPTOR(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_DESCRIPTOR(int, fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags), (fd, name, value, size, flags))
ON_DESCRIPTOR(off64_t, lseek64, (int fd, off64_t offset, int whence), (fd, offset, whence))
ON_DESCRIPTOR(ssize_t, read, (int fd, void *into, size_t size), (fd, into, size))
ON_DESCRIPTOR(ssize_t, pread64, (int fd, void *into, size_t size, off64_t offset), (fd, into, size, offset))
ON_DESCRIPTOR(ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
ON_PATH(int, rename, (const char *path, const char *to), (path, to))
ON_PATH(int, unlink, (const char *path), (path))

int close(int fd)
{
	static int count;
	REAL(close);
	int bad = refused_of("close", fd, &count), number = errno;
	int found = real(fd); /* the file is closed in any case */
	if (bad)
		errno = number;
	return bad ? -1 : found;
}

int fstat64(int fd, struct stat64 *found)
{
	static int count;
	REAL(fstat64);
	int bad = refused_of("fstat64", fd, &count) ? -1 : real(fd, found);
	if (!bad && refused_of("nolinks", fd, &count))
		found->st_nlink = 0;
	return bad;
}

int open64(const char *path, int flags, ...)
{
	static int count, made;
	REAL(open64);
	va_list more;
	va_start(more, flags);
	mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
	va_end(more);
	if (refused("open64", path, &count))
		return -1;
	int fd = real(path, flags, mode);
	if (fd >= 0 && flags & O_CREAT && refused("made", path, &made)) { /* created, but reported as an error */
		REAL(close);
		real(fd);
		errno = EEXIST;
		return -1;
	}
	return fd;
}

DIR *opendir(const char *path)
{
	static int count;
	REAL(opendir);
	return refused("opendir", path, &count) ? NULL : real(path);
}
