package advise

// Codes of findings. They are API: scripts match them. docs/findings.md
// explains each; a test holds the two together.
const (
	codeNoQuorum            = "no-quorum"
	codeNodeUnreachable     = "node-unreachable"
	codeAddressLost         = "address-lost"
	codeComponentDown       = "component-down"
	codeComponentCrashLoop  = "component-crash-loop"
	codeEtcdDown            = "etcd-down"
	codeEtcdNoLeader        = "etcd-no-leader"
	codeEtcdLearner         = "etcd-learner"
	codeEtcdNeverStarted    = "etcd-never-started"
	codeEtcdMemberUnknown   = "etcd-member-unknown"
	codeEtcdNotAMember      = "etcd-not-a-member"
	codeEtcdBehind          = "etcd-behind"
	codeEtcdEven            = "etcd-even"
	codeEtcdSingle          = "etcd-single"
	codeEtcdNoSpace         = "etcd-nospace"
	codeEtcdCorrupt         = "etcd-corrupt"
	codeEtcdQuotaNear       = "etcd-quota-near"
	codeEtcdFragmented      = "etcd-fragmented"
	codeDiskFull            = "disk-full"
	codeDiskLow             = "disk-low"
	codeDiskSlow            = "disk-slow"
	codeClockOff            = "clock-off"
	codeCertificateExpiring = "certificate-expiring"
	codeCertificateExpired  = "certificate-expired"
	codeNoLeaseHolder       = "no-lease-holder"
	codeVersionDiffers      = "version-differs"
	codeRestartDue          = "restart-due"
)
