package dirfile

import (
	"errors"
	"io/fs"
	"syscall"
)

const errorSharingViolation syscall.Errno = 32

// inUse reports whether err may come of somebody else who has the file open: Windows says that access is denied, too.
func inUse(err error) bool {
	return errors.Is(err, errorSharingViolation) || errors.Is(err, fs.ErrPermission)
}
