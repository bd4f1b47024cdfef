// Package verdict is what all of the command's parts tell programs: how they exit, and the object that -json prints.
package verdict

// What a command exits with, as monitoring wants it.
const (
	Well    = iota
	Soon    // look at it soon
	Broken  // broken now
	Unclear // could not tell: usage, no connection
)

// Worse returns the worse of two exit codes: 2 above 3 above 1.
func Worse(a, b int) int {
	rank := [...]int{Well: 0, Soon: 1, Unclear: 2, Broken: 3}
	if rank[a] > rank[b] {
		return a
	}
	return b
}

// An Object is what -json prints of a target, or of a file. All fields are always there, empty where nothing is known.
type Object struct {
	Target     string `json:"target"`
	Verdict    string `json:"verdict"`
	Stapled    bool   `json:"stapled"` // by the host; of a file that is kept: the response lies beside it
	MustStaple bool   `json:"must_staple"`
	Status     string `json:"status"`
	ThisUpdate string `json:"this_update"`
	NextUpdate string `json:"next_update"`
	Expires    string `json:"expires"`
	Responder  string `json:"responder"`
	Serial     string `json:"serial"`
	Name       string `json:"name"`
	Reason     string `json:"reason"`
	Error      string `json:"error"`
	Exit       int    `json:"exit"`
}
