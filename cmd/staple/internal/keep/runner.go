package keep

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	together = time.Second             // changes of so long are told of in one run
	runFor   = time.Minute             // a command may take
	lastRun  = 1200 * time.Millisecond // one may take once the keeper ends
	maxNames = 100 << 10               // bytes in STAPLE_FILES: Linux has 128 KiB for a variable
)

// A runner runs the command of -exec, once at a time.
type runner struct {
	command string
	stderr  io.Writer
	log     *slog.Logger

	mu    sync.Mutex
	names []string
	news  chan struct{}
}

func newRunner(command string, stderr io.Writer, log *slog.Logger) *runner {
	return &runner{command: command, stderr: stderr, log: log, news: make(chan struct{}, 1)}
}

// add has the command run soon, with name among the files.
func (r *runner) add(name string) {
	r.mu.Lock()
	if !slices.Contains(r.names[max(len(r.names)-100, 0):], name) {
		r.names = append(r.names, name)
	}
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// run runs the command when there is something to tell, until ctx ends.
func (r *runner) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			r.flush(ctx)
			return
		case <-r.news:
		}
		select {
		case <-ctx.Done():
		case <-time.After(together):
		}
		r.flush(ctx)
	}
}

// flush runs the command for all that was added. It reports whether that went well.
func (r *runner) flush(ctx context.Context) (well bool) {
	r.mu.Lock()
	names := r.names
	r.names = nil
	r.mu.Unlock()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), runFor)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastRun, cancel) })()
	well = true
	slices.Sort(names)
	names = slices.Compact(names)
	for len(names) > 0 {
		n, size := 0, 0
		for n < len(names) && (n == 0 || size+len(names[n]) < maxNames) {
			size += len(names[n]) + 1
			n++
		}
		cmd := exec.CommandContext(limit, "sh", "-c", r.command)
		cmd.Env = append(os.Environ(), "STAPLE_FILES="+strings.Join(names[:n], "\n"))
		cmd.Stdout, cmd.Stderr = r.stderr, r.stderr
		alone(cmd)
		cmd.WaitDelay = 100 * time.Millisecond // for what it leaves in the background
		if err := cmd.Run(); err != nil && err != exec.ErrWaitDelay {
			well = false
			r.log.Warn("the command of -exec failed: run it by hand to see why", "command", r.command, "files", n, "error", err)
		}
		names = names[n:]
	}
	return well
}
