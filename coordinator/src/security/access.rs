//! Which RPC needs which role: the one place. What does not stand here is not served.

use super::settings::Role;

/// Who may call something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever has proven to be a principal.
    Anyone,
    /// Who has this role. An operator may do what a viewer may.
    Needs(Role),
}

/// Who may call the method of this path, `/package.Service/Method`; `None` if there is no such method.
pub fn of(path: &str) -> Option<Access> {
    use Access::{Anyone, Needs};
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (service, method) {
        ("lockstep.v1.TransactionService", "Describe") => Anyone,
        ("lockstep.v1.TransactionService", "Transact" | "Commit" | "Lead" | "Inquire" | "Query" | "Search" | "Get") => Needs(Role::Client),
        ("lockstep.v1.TransactionService", "Migrate") => Needs(Role::Operator),
        ("lockstep.v1.ParticipantService", "Attend") => Needs(Role::Participant),
        (
            "lockstep.v1.AdminService",
            "Status" | "ListTransactions" | "ShowTransaction" | "ExplainTransaction" | "ListParticipants" | "DumpLog" | "VerifyLog"
            | "Doctor" | "Plan" | "ListDamage" | "ListAudit",
        ) => Needs(Role::Viewer),
        // What they find, and mend, is what rows and documents hold.
        ("lockstep.v1.AdminService", "Verify" | "Repair") => Needs(Role::Operator),
        ("lockstep.v1.AdminService", "Resolve" | "Skip" | "ForgetDamage" | "Waive" | "LeaveSafeMode" | "RemoveParticipant" | "Backup") => {
            Needs(Role::Operator)
        }
        ("grpc.health.v1.Health", "Check" | "List" | "Watch") => Anyone,
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo") => Anyone,
        _ => return None,
    })
}

/// Whether the method is one of a client's that counts as a request by itself; those of streams are counted one by one.
pub fn is_client_request(path: &str) -> bool {
    of(path) == Some(Access::Needs(Role::Client)) && !matches!(path.rsplit('/').next(), Some("Transact" | "Lead"))
}

/// Whether an attempt without the role is kept in the audit log.
pub fn is_audited(path: &str) -> bool {
    of(path) == Some(Access::Needs(Role::Operator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    /// Walks every service that is served.
    #[test]
    fn every_method_has_its_role() {
        let mut methods = 0;
        for descriptors in
            [lockstep_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET]
        {
            for file in FileDescriptorSet::decode(descriptors).expect("descriptors").file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        assert!(of(&path).is_some(), "{path} has no role: give it one in security/access.rs");
                        methods += 1;
                    }
                }
            }
        }
        assert!(methods >= 28, "{methods} methods are not all of them");
        assert_eq!(of("/lockstep.v1.AdminService/Nonsense"), None);
        assert_eq!(of("lockstep.v1.AdminService/Skip"), None);
    }
}
